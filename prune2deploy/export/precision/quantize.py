"""Make the int8 version of an ONNX file, as QuantizeLinear and DequantizeLinear pairs (QDQ).

ONNX Runtime's QDQ writer does it, with our ranges: its own percentile and entropy
calibrators keep every activation of every image, and the place of their bins follows
from whatever batch came first.

How fast the variants are (fp32 = 1; ONNX Runtime 1.32, one thread of a CPU with AVX-512
VNNI, ResNet-18 and MobileNetV2 at 224):

    uint8 activations, int8 weights        3.1  1.9   runtime "onnxruntime"
    the same as QOperator file             3.1  2.0   no gain, and no other runtime reads it
    the same without int8 bias             2.8  2.0
    the same, weights per tensor           3.0  2.0   no gain for the lower accuracy
    int8 activations, asymmetric           1.1  1.0   VNNI multiplies uint8 by int8
    int8 activations, symmetric            0.9  0.7   the same, and ReLUs stay operators
    runtime "tensorrt"                     0.9  0.4   ONNX Runtime wants results quantised

The first one elsewhere: DenseNet-121 1.7, ViT-B/16 2.5, EfficientNet-B0 1.2, but
MobileNetV3-Small 0.75: there is no int8 HardSwish, so every layer goes to fp32 and back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prune2deploy.errors import ExportError, nearest_name_hint
from prune2deploy.export.graph_edits import to_opset
from prune2deploy.export.precision.activations import Images
from prune2deploy.export.precision.calibration import (
    DEFAULT_PERCENTILE,
    Calibration,
    Method,
    calibrate,
    check_method,
)
from prune2deploy.export.precision.counts import LayerCount, Precision, precision_of
from prune2deploy.export.precision.graphs import (
    WEIGHTY,
    Layer,
    load_graph,
    nodes_named,
    require_layers,
    save_graph,
)
from prune2deploy.export.quiet import quiet
from prune2deploy.models import explain

Runtime = Literal["onnxruntime", "tensorrt"]

# These only limit or move what a layer returns.
_ATTACHED = ("Relu", "Clip")
# ONNX Runtime has these in int8. Between layers in int8 they save going to fp32 and back:
# without Mul and Sigmoid EfficientNet-B0 is slower than in fp32 (0.7), with them faster
# (1.3). Softmax and layer norms gain nothing and lose accuracy.
_BETWEEN = (
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Pad",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# The first opset with a scale per channel.
_OLDEST_OPSET = 13


@dataclass(frozen=True)
class QuantizedResult:
    """What became of the layers."""

    path: Path
    runtime: Runtime
    method: Method
    samples: int
    """Images that the ranges were read from."""
    kept: list[str]
    """Layers in fp32, by name, in the order of the graph."""
    precision: dict[Precision, LayerCount]
    """Read back from the file."""


def to_int8(
    source: Path,
    target: Path,
    *,
    batches: Iterable[Images] = (),
    calibration: Calibration | None = None,
    method: Method = "minmax",
    percentile: float = DEFAULT_PERCENTILE,
    keep: Collection[str] = (),
    keep_ends: bool = False,
    runtime: Runtime = "onnxruntime",
) -> QuantizedResult:
    """Write the int8 version of an fp32 file. Input and outputs stay fp32.

    Weights are int8, symmetric, with a scale per output channel. All else follows from
    the runtime that is to be fast:

    - "onnxruntime": uint8 activations with a zero point, int32 biases; additions, pooling
      and the like in int8 too. For ONNX Runtime on CPUs. x86 before VNNI may saturate.
    - "tensorrt": int8 activations, symmetric; fp32 biases; only the inputs of layers are
      quantised, from which TensorRT fuses the rest. It parses nothing else.

    Args:
        batches: training images, float32 (n, channels, height, width); read once.
        calibration: ranges from `calibrate`, instead of batches and a method.
        method, percentile: see `calibrate`.
        keep: layers (or nodes) that stay fp32, by name.
        keep_ends: the first and the last layer stay fp32, too.

    Raises:
        ExportError: source is no static fp32 model or has no layers, an unknown name,
            method or runtime, no images, or a result that is not valid.
    """
    if runtime not in get_args(Runtime):
        raise ExportError(
            f"int8 for '{runtime}' does not exist. {nearest_name_hint(runtime, get_args(Runtime))}"
        )
    check_method(method, percentile)
    original = load_graph(source)
    layers = require_layers(original, source)
    kept = nodes_named(original, keep)
    if keep_ends:
        kept |= {layers[0].node, layers[-1].node}
    if calibration is None:
        calibration = calibrate(source, batches, method, percentile=percentile)
    chosen = _nodes_in_int8(original, layers, kept, runtime)
    write_int8(original, target, calibration, chosen, runtime)
    return QuantizedResult(
        target,
        runtime,
        calibration.method,
        calibration.samples,
        [layer.name for layer in layers if layer.node in kept],
        precision_of(target),
    )


def write_int8(
    original: onnx.ModelProto,
    target: Path,
    calibration: Calibration,
    nodes: Collection[str],
    runtime: Runtime,
) -> None:
    """Write a version with just these nodes in int8; the model is left alone.

    Raises:
        ExportError: the calibration is another model's, or the result is not valid.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version < _OLDEST_OPSET:
        proto = to_opset(proto, _OLDEST_OPSET)
    _check_calibration(proto, calibration, nodes)
    try:
        # With an empty list it would take all nodes.
        result = _quantized(proto, calibration, nodes, runtime) if nodes else proto
    except Exception as err:
        raise ExportError(f"The model cannot be converted to int8: {explain(err)}.") from err
    if runtime == "onnxruntime":
        _set_apart(result.graph, nodes)
    save_graph(result, target, like=original)


def _check_calibration(
    proto: onnx.ModelProto, calibration: Calibration, nodes: Collection[str]
) -> None:
    computed = {name for node in proto.graph.node for name in node.output}
    computed.add(proto.graph.input[0].name)
    for node in proto.graph.node:
        if node.name in nodes and node.op_type in WEIGHTY:
            missing = {node.input[0], *node.output} & computed - set(calibration.ranges)
            if missing:
                raise ExportError(
                    f"The calibration has no range for '{min(missing)}'. "
                    "Use the one that was made from this very file."
                )


def _quantized(
    proto: onnx.ModelProto, calibration: Calibration, nodes: Collection[str], runtime: Runtime
) -> onnx.ModelProto:
    # Takes a quarter of a second, and nobody else needs it.
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    # Its name for ranges from anywhere.
    ranges = TensorsData(
        CalibrationMethod.MinMax,
        {name: (np.float32(a), np.float32(b)) for name, (a, b) in calibration.ranges.items()},
    )
    options: dict[str, Any] = {"WeightSymmetric": True}
    if runtime == "tensorrt":
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTY),
        }
    with quiet():
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if runtime == "onnxruntime" else QuantType.QInt8,
            tensors_range=ranges,
            nodes_to_quantize=sorted(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=[*WEIGHTY, *_ATTACHED, *_BETWEEN],
            extra_options=options,
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result


def _set_apart(graph: onnx.GraphProto, nodes: Collection[str]) -> None:
    """Keep ONNX Runtime from quantising layers that are to stay fp32.

    From 1.21 on it quantises the fp32 weights of a layer between a DequantizeLinear and
    a QuantizeLinear when it loads the file (its pull requests 22969 and 25673). A clip
    to more than what 8 bits can be stands in between and changes nothing.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    clipped: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type not in WEIGHTY or node.name in nodes:
            continue
        name = node.input[0]
        maker = makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        if name not in clipped:
            clipped[name] = f"{name}_apart"
            scale, zero = (numpy_helper.to_array(constants[n]) for n in maker.input[1:3])
            limits = {"low": (-1 - float(zero)) * scale, "high": (256 - float(zero)) * scale}
            inputs = [f"{name}_{side}" for side in limits]
            for side, limit in zip(inputs, limits.values(), strict=True):
                graph.initializer.append(
                    numpy_helper.from_array(np.asarray(limit, np.float32), side)
                )
            graph.node.append(
                helper.make_node("Clip", [name, *inputs], [clipped[name]], clipped[name])
            )
        node.input[0] = clipped[name]


def _nodes_in_int8(
    proto: onnx.ModelProto, layers: Collection[Layer], kept: Collection[str], runtime: Runtime
) -> set[str]:
    """Return the layers, and where it pays the operators between two of them.

    An operator between layers is in int8 only if all that it combines comes from int8.
    So what a layer in fp32 returns is not rounded by those that follow it.
    """
    chosen = {layer.node for layer in layers if layer.node not in kept}
    if runtime == "tensorrt":
        return chosen
    constants = {tensor.name for tensor in proto.graph.initializer}
    eighth = {name for node in proto.graph.node if node.name in chosen for name in node.output}
    for node in proto.graph.node:
        if node.name in kept or node.name in chosen:
            continue
        # Products of two activations, as in attention, have no weights and are no layers.
        if node.op_type in (*_ATTACHED, *_BETWEEN, "MatMul"):
            read = [name for name in node.input if name and name not in constants]
            if read and all(name in eighth for name in read):
                chosen.add(node.name)
                eighth.update(node.output)
    return chosen


def alone(proto: onnx.ModelProto, layer: Layer) -> set[str]:
    """Return a layer's node with the activation function that goes into its int8 form."""
    result = {layer.node}
    output = next(node.output[0] for node in proto.graph.node if node.name == layer.node)
    readers = [node for node in proto.graph.node if output in node.input]
    if len(readers) == 1 and readers[0].op_type in _ATTACHED:
        result.add(readers[0].name)
    return result
