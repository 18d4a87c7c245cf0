"""Read and write the ONNX graphs that a precision is made for, and name their layers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from prune2deploy.errors import ExportError, nearest_name_hint
from prune2deploy.export.onnx import write_whole

#: Operators that hold nearly all weights and arithmetic of a network.
WEIGHTY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WEIGHT_SUFFIX = ".weight"


@dataclass(frozen=True)
class Layer:
    """One operator with a constant weight."""

    name: str
    """PyTorch's name of the module where the weight has kept it, else the node's name."""
    node: str
    """The node's name, unique in the graph."""
    op: str
    weight: str
    """The initializer."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Return the model of a file, with a unique name for every node.

    Raises:
        ExportError: no such file, or not an ONNX model with one image input of a static
            shape.
    """
    if not path.is_file():
        raise ExportError(f"There is no ONNX file {path}.")
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except Exception as err:  # protobuf's decoding errors have no common class but Exception.
        raise ExportError(f"{path} is not a valid ONNX model: {err}") from err
    _check_input(proto, path)
    taken = Counter(node.name for node in proto.graph.node)
    for number, node in enumerate(proto.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{number}"
    return proto


def _check_input(proto: onnx.ModelProto, path: Path) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [info for info in proto.graph.input if info.name not in constants]
    if len(inputs) != 1:
        raise ExportError(
            f"{path} has {len(inputs)} inputs; a precision can be made for models with one."
        )
    kind = inputs[0].type.tensor_type
    shape = [d.dim_value or d.dim_param or "?" for d in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind.elem_type)
        raise ExportError(
            f"The input of {path} is {found}; expected FLOAT. Start from the fp32 file."
        )
    if not shape or not all(isinstance(size, int) for size in shape):
        raise ExportError(
            f"The input of {path} has the shape {shape}, which is not static. "
            "Export the model with a fixed batch and image size."
        )


def layers_of(proto: onnx.ModelProto) -> list[Layer]:
    """Return the operators that have a constant weight, in the order of the graph."""
    constants = {t.name for t in proto.graph.initializer}
    found = [
        (node, node.input[1])
        for node in proto.graph.node
        if node.op_type in WEIGHTY and node.input[1] in constants
    ]
    uses = Counter(weight for _, weight in found)

    def name(node: onnx.NodeProto, weight: str) -> str:
        named = weight.endswith(_WEIGHT_SUFFIX) and uses[weight] == 1
        return weight.removesuffix(_WEIGHT_SUFFIX) if named else str(node.name)

    return [Layer(name(node, w), node.name, node.op_type, w) for node, w in found]


def nodes_named(proto: onnx.ModelProto, names: Iterable[str]) -> set[str]:
    """Return the nodes that these names of layers or nodes stand for.

    Raises:
        ExportError: there is none of that name.
    """
    nodes = {layer.name: layer.node for layer in layers_of(proto)}
    nodes |= {node.name: node.name for node in proto.graph.node}
    unknown = [name for name in names if name not in nodes]
    if unknown:
        raise ExportError(
            f"The model has no layer '{unknown[0]}', which is to keep its precision. "
            + nearest_name_hint(unknown[0], [layer.name for layer in layers_of(proto)])
        )
    return {nodes[name] for name in names}


def require_layers(proto: onnx.ModelProto, path: Path) -> list[Layer]:
    """Return the layers.

    Raises:
        ExportError: there are none, so no other precision would change anything.
    """
    layers = layers_of(proto)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    if not any(kinds[layer.weight] == TensorProto.FLOAT for layer in layers):
        raise ExportError(
            f"{path} has no {', '.join(WEIGHTY[:-1])} or {WEIGHTY[-1]} with constant fp32 "
            "weights, so there is nothing to make smaller. Start from the fp32 file of a network."
        )
    return layers


def save_graph(proto: onnx.ModelProto, target: Path, *, like: onnx.ModelProto) -> None:
    """Check the model and write it whole, with the metadata and the producer of `like`.

    Raises:
        ExportError: it is not valid, or cannot be written.
    """
    sort_nodes(proto.graph)
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    proto.producer_name, proto.producer_version = like.producer_name, like.producer_version
    del proto.graph.value_info[:]  # Of no use to runtimes, and wrong where types have changed.
    _drop_unused_opsets(proto)
    proto.ir_version = max(like.ir_version, helper.find_min_ir_version_for(proto.opset_import))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(f"The converted ONNX model is not valid: {err}") from err
    write_whole(target, proto.SerializeToString(deterministic=True))


def _drop_unused_opsets(proto: onnx.ModelProto) -> None:
    used: Collection[str] = {node.domain for node in proto.graph.node} | {"", "ai.onnx"}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those it reads, and else leave the order alone."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waits_for = [{maker[n] for n in _reads(node) if n in maker} for node in graph.node]
    readers: list[list[int]] = [[] for _ in graph.node]
    for index, others in enumerate(waits_for):
        for other in others:
            readers[other].append(index)
    ready = [index for index, others in enumerate(waits_for) if not others]
    order: list[onnx.NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(graph.node[index])
        for reader in readers[index]:
            waits_for[reader].discard(index)
            if not waits_for[reader]:
                heapq.heappush(ready, reader)
    assert len(order) == len(graph.node), "The graph has a cycle."
    del graph.node[:]
    graph.node.extend(order)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Yield what a node reads, also from within its branches."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from _reads(inner)
