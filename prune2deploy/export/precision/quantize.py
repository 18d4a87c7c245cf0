"""The int8 version of an ONNX file: scales from images, written as QuantizeLinear pairs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from onnx import TensorProto

from prune2deploy.errors import ExportError, nearest_name_hint
from prune2deploy.export.precision.calibration import Method, Ranges, calibrated
from prune2deploy.export.precision.kinds import LAYERS, check_names, layer_names, read, write
from prune2deploy.export.precision.samples import Batches
from prune2deploy.export.quiet import quiet
from prune2deploy.models import explain

_log = logging.getLogger(__name__)

Runtime = Literal["onnxruntime", "tensorrt"]
_OLDEST_OPSET = 13  # The first whose QuantizeLinear has a scale per channel.


@dataclass(frozen=True)
class QuantizedResult:
    """An int8 file, and what in it is not."""

    path: Path
    method: Method
    runtime: Runtime
    quantized: tuple[str, ...]
    """Layers that compute in int8, by the names of their nodes."""
    kept: tuple[str, ...]
    """Layers that stay in fp32."""
    images: int
    """Images that the scales come from: the first of those given, up to the method's limit."""


def to_int8(
    source: Path,
    target: Path,
    *,
    batches: Batches,
    method: Method = "percentile",
    runtime: Runtime = "onnxruntime",
    keep: Sequence[str] = (),
) -> QuantizedResult:
    """Write a version whose layers compute in int8; inputs, outputs and metadata stay.

    Weights are symmetric with a scale per output channel, activations have one scale each. The
    same file and images give the same bytes.

    Args:
        source: fp32, of opset 13 or newer, batch norms folded.
        batches: float32 (n, channels, height, width) each, as the model sees them in use. Only
            so many are read as the method needs (calibration.MOST_IMAGES).
        method: where an activation's range ends: "minmax", at the largest values seen;
            "percentile", where all but one of 10,000 end; "entropy", where the distribution
            changes least.
        runtime: what will run it. TensorRT takes symmetric ranges only.
        keep: names of nodes that stay in fp32.

    Raises:
        ExportError: `source` is no fp32 ONNX file of these, a name is unknown, no layer is left
            to quantize, or the images do not fit or are none.
    """
    model = readable(source, method, runtime)
    check_names(model, keep)
    ranges = calibrated(model, batches, method, operators(runtime))
    return write_int8(model, target, ranges, runtime, keep)


def readable(source: Path, method: Method, runtime: Runtime) -> onnx.ModelProto:
    """Read the file to quantize and check what was asked.

    Raises:
        ExportError: as of `to_int8`.
    """
    for what, value, known in (
        ("method", method, get_args(Method)),
        ("runtime", runtime, get_args(Runtime)),
    ):
        if value not in known:
            raise ExportError(f"Unknown {what} '{value}'. {nearest_name_hint(value, known)}")
    model = read(source)
    opset = next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    if opset < _OLDEST_OPSET:
        raise ExportError(
            f"{source} has ONNX opset {opset}; int8 with a scale per channel needs "
            f"{_OLDEST_OPSET} or newer. Export it with export.onnx.opset {_OLDEST_OPSET} or more."
        )
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ExportError(f"{source} holds fp16. Quantize the fp32 file.")
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        raise ExportError(f"{source} is quantized already. Quantize the fp32 file.")
    if not layer_names(model):
        raise ExportError(f"{source} has no layer with weights to quantize.")
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model)
    return inferred


def operators(runtime: Runtime) -> list[str]:
    """Return the operators that compute in int8 in a runtime."""
    if runtime == "tensorrt":
        # TensorRT fuses what lies between: only what enters a layer is quantized.
        return sorted(LAYERS)
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def write_int8(
    model: onnx.ModelProto,
    target: Path,
    ranges: Ranges,
    runtime: Runtime,
    keep: Collection[str],
    only: Collection[str] | None = None,
) -> QuantizedResult:
    """Write the model with these ranges; see `to_int8`.

    Args:
        model: as `readable` returns it.
        only: quantize only these nodes; None: all that are not kept.
    """
    layers = layer_names(model)
    kept = [name for name in layers if name in keep or (only is not None and name not in only)]
    if len(kept) == len(layers):
        raise ExportError("All layers are to stay in fp32: nothing is left to quantize.")
    excluded = {*keep, *beside(model, set(keep) & set(layers), runtime)}
    try:
        with quiet():
            proto = _quantized(model, ranges, runtime, excluded, only or ())
    except Exception as err:
        raise ExportError(
            f"ONNX Runtime could not quantize the model: {explain(err)}. Keep the layer that it "
            "names in fp32, or export the model with a newer opset."
        ) from err
    write(proto, model, target)
    quantized = tuple(name for name in layers if name not in kept)
    return QuantizedResult(target, ranges.method, runtime, quantized, tuple(kept), ranges.images)


def beside(model: onnx.ModelProto, layers: Collection[str], runtime: Runtime) -> set[str]:
    """Return the nodes that go on with what these layers return, up to the next layer.

    Quantizing them would quantize what a layer in fp32 has just computed. The first node that
    joins it with something else is the last.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in model.graph.initializer}
    found: set[str] = set()
    waiting = [node for node in model.graph.node if node.name in layers]
    while waiting:
        node = waiting.pop()
        for reader in (r for name in node.output for r in readers.get(name, ())):
            if reader.op_type in LAYERS or reader.name in found:
                continue
            found.add(reader.name)
            if len([name for name in reader.input if name and name not in constants]) == 1:
                waiting.append(reader)
    return found


def _quantized(
    model: onnx.ModelProto,
    ranges: Ranges,
    runtime: Runtime,
    excluded: Collection[str],
    only: Collection[str],
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # For ONNX Runtime unsigned activations, as pairs. Times as fast as fp32 on one thread of a CPU
    # with AVX-512 VNNI, ResNet-18 and MobileNetV2 at 224: 3.19 and 1.95; signed 1.05 and 1.07,
    # signed and symmetric 1.00 and 0.66; QLinearConv in place of pairs 3.18 and 1.96, signed 0.14
    # and 0.17; one scale for all channels of a weight 3.19 and 1.97.
    symmetric = runtime == "tensorrt"
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": symmetric}
    if symmetric:
        # It takes no int32 bias and no zero points, and wants to fuse a layer with what follows.
        options |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": list(LAYERS)}
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=ranges.tensors,
        nodes_to_quantize=sorted(only),
        nodes_to_exclude=sorted(excluded),
        op_types_to_quantize=operators(runtime),
        extra_options=options,
    )
    quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result
