"""Make the fp16 version of an ONNX file.

The conversion itself is ONNX Runtime's. Of the two converters that are kept up, it has
the limits of the type as its defaults, where onnxconverter-common clips at 10000; it
keeps apart initializers that fp16 and fp32 operators share; and it comes with ONNX
Runtime, which is needed anyway. Both gave equal numbers on torchvision's ResNet,
MobileNet, EfficientNet and DenseNet. What it leaves to us is done below: the order of
the nodes, and casts that lead to fp16 and back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prune2deploy.errors import ExportError
from prune2deploy.export.precision.activations import Images, Statistics, collect
from prune2deploy.export.precision.counts import LayerCount, Precision, precision_of
from prune2deploy.export.precision.graphs import (
    layers_of,
    load_graph,
    nodes_named,
    require_layers,
    save_graph,
)
from prune2deploy.models import explain

LARGEST = 65504.0
# Calibration images do not hold the largest activation there is.
_MARGIN = 4.0
_SMALLEST_NORMAL = 2.0**-14
_SMALLEST = 2.0**-24


@dataclass(frozen=True)
class HalfResult:
    """What became of the layers and the weights."""

    path: Path
    kept: dict[str, str]
    """Operators that compute in fp32, by layer or node name, with the reason in words."""
    precision: dict[Precision, LayerCount]
    """Read back from the file."""
    largest_activation: float | None
    """Over all fp16 tensors, in their own units; None where no images were given."""
    subnormal_weights: int
    """Weights other than 0 so small that fp16 stores them with fewer digits (below 6.1e-5)."""
    raised_weights: int
    """Of these, weights that become the smallest fp16 number, 6e-8, as they are below it."""


def to_fp16(
    source: Path,
    target: Path,
    *,
    batches: Iterable[Images] | None = None,
    keep: Collection[str] = (),
    keep_io: bool = True,
) -> HalfResult:
    """Write the fp16 version of an fp32 file.

    All tensors are typed in the file, with casts where the type changes, as strongly
    typed runtimes (TensorRT 11, TensorRT for RTX) want it. What cannot be fp16 stays
    fp32: operators that runtimes have in fp32 only, and operators that read, hold or
    return values which fp16 cannot represent. ONNX Runtime on a CPU does not show such
    values, as it computes most fp16 operators in fp32; a GPU would.

    Args:
        batches: training images, float32 (n, channels, height, width), to look for
            activations that overflow; None: only weights are looked at.
        keep: layers (or nodes) that stay fp32, by name.
        keep_io: input and outputs stay fp32, so that the file is used like the original.

    Raises:
        ExportError: source is no static fp32 model, an unknown name in keep, or a result
            that is not valid.
    """
    original = load_graph(source)
    # Of an int8 file the rest is converted, which may be no layer at all.
    if not any(node.op_type == "QuantizeLinear" for node in original.graph.node):
        require_layers(original, source)
    kept = dict.fromkeys(nodes_named(original, keep), "asked for")
    statistics = None if batches is None else collect(original, batches)
    for node, reason in _must_stay(original, statistics).items():
        kept.setdefault(node, reason)
    try:
        proto = _converted(original, set(kept), keep_io)
    except Exception as err:
        raise ExportError(f"{source} cannot be converted to fp16: {explain(err)}.") from err
    save_graph(proto, target, like=original)
    names = {layer.node: layer.name for layer in layers_of(original)}
    order = [node.name for node in original.graph.node if node.name in kept]
    subnormal, raised = _small_weights(original, kept)
    return HalfResult(
        target,
        {names.get(node, node): kept[node] for node in order},
        precision_of(target),
        None if statistics is None else _largest(original, statistics, kept),
        subnormal,
        raised,
    )


def _must_stay(proto: onnx.ModelProto, statistics: Statistics | None) -> dict[str, str]:
    """Return the nodes that cannot be fp16, with the reason."""
    from onnxruntime.transformers import float16  # Only where it is needed: it takes a while.

    blocked = set(float16.DEFAULT_OP_BLOCK_LIST)
    large = {t.name: size for t in proto.graph.initializer if (size := _size(t)) > LARGEST}
    seen = {} if statistics is None else statistics.tensors
    hot = {name: t.largest for name, t in seen.items() if t.largest > LARGEST / _MARGIN}
    result = {}
    for node in proto.graph.node:
        for name in node.input:
            if name in large:
                result[node.name] = f"a weight of {large[name]:.3g} is above {LARGEST:.0f}"
        for what, names in (("returns", node.output), ("reads", node.input)):
            for name in names:
                if name in hot:
                    result.setdefault(
                        node.name,
                        f"it {what} values up to {hot[name]:.3g}; fp16 ends at {LARGEST:.0f}",
                    )
        if node.op_type in blocked:
            result[node.name] = f"runtimes have {node.op_type} in fp32 only"
    return result


def _size(tensor: onnx.TensorProto) -> float:
    if tensor.data_type != TensorProto.FLOAT:
        return 0.0
    values = numpy_helper.to_array(tensor)
    # Infinity is exact in fp16, as the mask of an attention.
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _largest(proto: onnx.ModelProto, statistics: Statistics, kept: Collection[str]) -> float:
    inside = {
        name
        for node in proto.graph.node
        if node.name not in kept
        for name in (*node.input, *node.output)
    }
    return max(t.largest for name, t in statistics.tensors.items() if name in inside)


def _small_weights(proto: onnx.ModelProto, kept: Collection[str]) -> tuple[int, int]:
    weights = {layer.weight for layer in layers_of(proto) if layer.node not in kept}
    subnormal = raised = 0
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            sizes = np.abs(numpy_helper.to_array(tensor))
            subnormal += int(((sizes > 0) & (sizes < _SMALLEST_NORMAL)).sum())
            raised += int(((sizes > 0) & (sizes < _SMALLEST)).sum())
    return subnormal, raised


def _converted(original: onnx.ModelProto, kept: Collection[str], keep_io: bool) -> onnx.ModelProto:
    from onnxruntime.transformers import float16

    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    result: onnx.ModelProto = float16.convert_float_to_float16(
        proto,
        keep_io_types=keep_io,
        # Named by node alone, so that what is reported is what was done.
        op_block_list=[],
        node_block_list=sorted(kept),
    )
    _remove_detours(result)
    return result


def _remove_detours(proto: onnx.ModelProto) -> None:
    """Connect fp32 operators directly where fp32 is cast to fp16 and back.

    Between two operators that stay fp32 because a value is too large for fp16, the
    detour would make it infinite.
    """
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = (*graph.input, *inferred.value_info)
    floats = {i.name for i in infos if i.type.tensor_type.elem_type == TensorProto.FLOAT}
    casts = {
        node.output[0]: (node.input[0], next(a.i for a in node.attribute if a.name == "to"))
        for node in graph.node
        if node.op_type == "Cast"
    }
    direct = {}
    for name, (middle, to) in casts.items():
        source, half = casts.get(middle, ("", 0))
        if to == TensorProto.FLOAT and half == TensorProto.FLOAT16 and source in floats:
            direct[name] = source
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in direct and node.output[0] in outputs:
            node.op_type = "Identity"
            del node.attribute[:]
            node.input[0] = direct[node.output[0]]
            continue
        node.input[:] = [direct.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input} | outputs
    while True:
        idle = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)
        used = {name for node in graph.node for name in node.input} | outputs
