"""What the layers of an ONNX file compute in, and how a file is read and written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from prune2deploy.errors import ExportError, nearest_name_hint
from prune2deploy.export.graph_edits import clean
from prune2deploy.export.onnx import write_whole

#: Operators with weights: those whose precision is counted, ranked and chosen.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER_LAYERS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm")
_BYTES = (TensorProto.INT8, TensorProto.UINT8)


def read(path: Path) -> onnx.ModelProto:
    """Read a file, and name the nodes that have no name.

    Raises:
        ExportError: no such file, or not ONNX.
    """
    try:
        proto = onnx.load(path)
    except OSError as err:
        raise ExportError(f"The ONNX file {path} cannot be read: {err.strerror}.") from err
    except Exception as err:  # Of protobuf, which has no types.
        raise ExportError(f"{path} is not an ONNX file, or it is cut short.") from err
    taken = {node.name for node in proto.graph.node}
    for index, node in enumerate(proto.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    return proto


def write(proto: onnx.ModelProto, source: onnx.ModelProto, target: Path) -> None:
    """Write a model that was made from another, with that one's metadata.

    Raises:
        ExportError: it is not valid, or cannot be written.
    """
    used = {node.domain for node in proto.graph.node}
    imports = [entry for entry in proto.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(sorted(imports, key=lambda entry: entry.domain))
    _sort(proto.graph)
    clean(proto)
    proto.ir_version = max(proto.ir_version, source.ir_version)
    proto.producer_name, proto.producer_version = source.producer_name, source.producer_version
    proto.metadata_props.extend(source.metadata_props)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(
            f"The converted ONNX model is not valid: {err}. Export the model with another "
            "export.onnx.opset and convert it again."
        ) from err
    write_whole(target, proto.SerializeToString(deterministic=True))


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those it reads from; converters append theirs at the end."""
    makers = {out: index for index, node in enumerate(graph.node) for out in node.output}
    nodes = list(graph.node)
    placed: dict[int, None] = {}
    for start in range(len(nodes)):
        waiting = [start]
        while waiting:
            reads = (makers[name] for name in nodes[waiting[-1]].input if name in makers)
            missing = [index for index in reads if index not in placed]
            if missing:
                waiting.extend(reversed(missing))
            else:
                placed[waiting.pop()] = None
    del graph.node[:]
    graph.node.extend([nodes[index] for index in placed])


def layer_names(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that have weights, in the order they run in."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {out for n in proto.graph.node if n.op_type == "Constant" for out in n.output}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type in LAYERS and node.input[1] in constants
    ]


def check_names(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Refuse names of nodes that the file does not have.

    Raises:
        ExportError: names the first.
    """
    known = [node.name for node in proto.graph.node]
    for name in names:
        if name not in known:
            hint = nearest_name_hint(name, known)
            raise ExportError(f"keep: the ONNX file has no node '{name}'. {hint}")


def precision_of(path: Path) -> dict[str, int]:
    """Return how many layers of a file compute in "fp32", "fp16" and "int8".

    Layers are convolutions and matrix products. int8: both factors are dequantized from 8-bit
    integers, which a runtime computes as integers, or the operator is of integers itself.

    Raises:
        ExportError: the file cannot be read, or a layer computes in something else.
    """
    graph = onnx.shape_inference.infer_shapes(read(path)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    makers = {out: node for node in graph.node for out in node.output}
    counts = {"fp32": 0, "fp16": 0, "int8": 0}
    for node in graph.node:
        if node.op_type in _INTEGER_LAYERS:
            counts["int8"] += 1
        elif node.op_type in LAYERS:
            counts[_kind(node, types, makers)] += 1
    return counts


def _kind(node: onnx.NodeProto, types: dict[str, int], makers: dict[str, onnx.NodeProto]) -> str:
    factors = [makers.get(name) for name in node.input[:2]]
    if all(
        maker is not None
        and maker.op_type == "DequantizeLinear"
        and types.get(maker.input[0]) in _BYTES
        for maker in factors
    ):
        return "int8"
    found = {types.get(name) for name in node.input[:2]}
    if found == {TensorProto.FLOAT}:
        return "fp32"
    if found == {TensorProto.FLOAT16}:
        return "fp16"
    names = [TensorProto.DataType.Name(kind) if kind else "unknown" for kind in found]
    raise ExportError(
        f"Layer '{node.name}' computes in {' and '.join(sorted(names))}; expected fp32, fp16 or "
        "int8."
    )
