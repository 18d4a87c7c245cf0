"""The fp16 version of an ONNX file, with fp32 where fp16 cannot hold the numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prune2deploy.errors import ExportError
from prune2deploy.export.precision.kinds import check_names, read, write
from prune2deploy.export.precision.samples import Batches, whole_batches
from prune2deploy.export.precision.sessions import session_of, watched
from prune2deploy.export.quiet import quiet

_log = logging.getLogger(__name__)

_LARGEST = 65504.0  # of fp16
# Half of it, as other images reach farther than those that were looked at.
_LIMIT = _LARGEST / 2


@dataclass(frozen=True)
class HalfResult:
    """An fp16 file, and what in it is not."""

    path: Path
    kept: dict[str, str]
    """Nodes that compute in fp32, by name, with the reason."""
    images: int
    """Images on which the largest values were looked for; 0: nobody looked."""


def to_fp16(
    source: Path, target: Path, *, keep: Sequence[str] = (), batches: Batches = ()
) -> HalfResult:
    """Write a version that computes in fp16; inputs, outputs and metadata stay as they are.

    Stays in fp32: what is in `keep`, operators that have no fp16, and all that reads, writes or
    holds numbers of more than half of what fp16 can, in the weights or on the given images. Do
    not wait for `compare` to show an overflow: on a CPU, ONNX Runtime takes fp32 for much of
    what is fp16 in the file.

    Args:
        keep: names of nodes.
        batches: float32 (n, channels, height, width) each, to look for large values in.

    Raises:
        ExportError: `source` is not fp32 ONNX, cannot be run or converted, a name in `keep` is
            unknown, or the images do not fit.
    """
    original = read(source)
    check_names(original, keep)
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in original.graph.initializer):
        raise ExportError(f"{source} holds fp16 already. Convert the fp32 file.")
    kept = dict.fromkeys(keep, "asked for")
    peaks, images = _peaks(original, batches)
    for node in original.graph.node:
        reason = _reason(node, peaks, original)
        if reason:
            kept.setdefault(node.name, reason)
    converted = _converted(original, list(kept))
    write(converted, original, target)
    for name, reason in kept.items():
        _log.info("%s stays in fp32: %s.", name, reason)
    return HalfResult(target, kept, images)


def _reason(node: onnx.NodeProto, peaks: dict[str, float], original: onnx.ModelProto) -> str | None:
    if node.op_type in _without_half(original):
        return f"{node.op_type} has no fp16"
    peak, name = max(
        ((peaks.get(name, 0.0), name) for name in (*node.input, *node.output)), default=(0.0, "")
    )
    if peak > _LIMIT:
        return f"'{name}' holds {peak:.3g}, and fp16 ends at {_LARGEST:.0f}"
    return None


def _without_half(proto: onnx.ModelProto) -> set[str]:
    """Return the operators of a model that the converter or ONNX itself has only in fp32."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    found = set()
    for node in proto.graph.node:
        if onnx.defs.has(node.op_type, versions.get(node.domain, 1), node.domain):
            schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
            allowed = [set(rule.allowed_type_strs) for rule in schema.type_constraints]
            fixed = [given.type_str for given in (*schema.inputs, *schema.outputs)]
            floats = any("tensor(float)" in types for types in allowed)
            half = any("tensor(float16)" in types for types in allowed)
            if (floats and not half) or (not floats and "tensor(float)" in fixed):
                found.add(node.op_type)
    return found | {n.op_type for n in proto.graph.node if n.op_type in _blocked_operators()}


def _converter() -> Any:
    from onnxruntime.transformers import float16  # A second, and it alters sys.path.

    return float16


def _blocked_operators() -> list[str]:
    operators: list[str] = _converter().DEFAULT_OP_BLOCK_LIST
    return operators


def _converted(original: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    source = onnx.ModelProto()
    source.CopyFrom(original)
    # ONNX Runtime's, as the one of onnxconverter-common leaves weights that a kept and another
    # node share in fp32, so that the other one mixes types, and cuts weights off at 1e4. On
    # ResNet-18, MobileNetV3, EfficientNet-B0 and DenseNet-121 both work and agree to 1e-6.
    try:
        with quiet():
            proto: onnx.ModelProto = _converter().convert_float_to_float16(
                source, keep_io_types=True, node_block_list=kept
            )
    except Exception as err:
        raise ExportError(f"The ONNX file could not be converted to fp16: {err}.") from err
    _skip_round_trips(proto.graph)
    return proto


def _skip_round_trips(graph: onnx.GraphProto) -> None:
    """Let what is cast to fp16 and back be read as it was: the converter casts around each node.

    Between two nodes that are kept it would cut off just the numbers they were kept for.
    """
    casts = {node.output[0]: node for node in graph.node if _cast_to(node) is not None}
    half = {out: n.input[0] for out, n in casts.items() if _cast_to(n) == TensorProto.FLOAT16}
    types = {
        info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info)
    }
    original = {
        out: half[node.input[0]]
        for out, node in casts.items()
        if _cast_to(node) == TensorProto.FLOAT
        and types.get(half.get(node.input[0], "")) == TensorProto.FLOAT
    }
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in original and node.output[0] in outputs:
            node.CopyFrom(
                onnx.helper.make_node(
                    "Identity", [original[node.output[0]]], [node.output[0]], node.name
                )
            )
        else:
            node.input[:] = [original.get(name, name) for name in node.input]
    _remove_unread_casts(graph)


def _remove_unread_casts(graph: onnx.GraphProto) -> None:
    outputs = {output.name for output in graph.output}
    while True:
        read_names = outputs | {name for node in graph.node for name in node.input}
        nodes = [
            node for node in graph.node if _cast_to(node) is None or node.output[0] in read_names
        ]
        if len(nodes) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(nodes)
    written = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in written]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def _cast_to(node: onnx.NodeProto) -> int | None:
    if node.op_type != "Cast":
        return None
    return next(int(a.i) for a in node.attribute if a.name == "to")


def _peaks(proto: onnx.ModelProto, batches: Batches) -> tuple[dict[str, float], int]:
    """Return the largest absolute value of every float tensor, and how many images were run.

    Constants are always looked at, the rest on the images only. Numbers that are not finite
    count as infinity.
    """
    peaks = {
        tensor.name: _peak(numpy_helper.to_array(tensor))
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    images = 0
    session = None
    for feed in whole_batches(proto, batches):
        session = session or session_of(watched(proto))
        names = [output.name for output in session.get_outputs()]
        for name, value in zip(names, session.run(names, feed), strict=True):
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                peaks[name] = max(peaks.get(name, 0.0), _peak(value))
        (array,) = feed.values()
        peaks.update(
            {name: max(peaks.get(name, 0.0), _peak(value)) for name, value in feed.items()}
        )
        images += len(array)
    return peaks, images


def _peak(values: Any) -> float:
    if not values.size:
        return 0.0
    peak = float(np.abs(values).max())
    return peak if np.isfinite(peak) else float("inf")
