"""Which layer of an ONNX file a node of the runtime is.

A layer's name comes from the tensors that a node reads: "layer1.0.conv1.weight" makes it
"layer1.0.conv1". A node without such a tensor has its own name, or that of what it gives. The
runtime fuses nodes, renames them and puts its own between them; what is known of its names was
seen in ONNX Runtime 1.32 and is no interface, so what the optimised graph's tensors tell is used
as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[str, str, int]

_PARAMETER = re.compile(r"(.+?)\.(weight|bias)(?![a-z])")
_UNIQUE_SUFFIX = re.compile(r"_token_\d+$")
_NCHWC = "_nchwc"
# Between a weight and who reads it.
_PASSES = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"}
# The runtime adds these for its own sake; one in the file keeps its name.
_MOVES = {*_PASSES, "Reshape", "Squeeze", "Unsqueeze"}
_FUSION_DEPTH = 4


@dataclass(frozen=True)
class FileNode:
    """A node as the file has it. `key` is the same for the same layer of a pruned file.

    axis, channels: of the first output; None where the shape or its layout is not known.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str
    key: Key
    axis: int | None
    channels: int | None


@dataclass(frozen=True)
class FileGraph:
    """The nodes in the file's order, without constants; and who makes and reads each tensor."""

    nodes: tuple[FileNode, ...]
    producer: Mapping[str, int]
    readers: Mapping[str, Sequence[int]]
    named: Mapping[str, int]

    def origin(self, executed: Mapping[str, Any]) -> int | None:
        """Return the place of the file's node that this one of the runtime is or begins with.

        executed: of the probe's answer. None: the runtime added it, or it cannot be told.
        """
        name, op = executed["name"], executed["op"]
        plain = _UNIQUE_SUFFIX.sub("", name)
        if plain.endswith(_NCHWC):  # such a node is named by the tensor that it gives
            made_by = self.producer.get(plain.removesuffix(_NCHWC))
            return None if made_by is None else self._begin(made_by, op)
        if op.startswith(("Reorder", "Memcpy")):
            return None
        for place in (self._by_name(name), self._by_weight(executed), self._by_output(executed)):
            if place is not None:
                return place
        # Without a name it is called after its place among the nodes.
        index = executed["index"]
        if name == f"{op}_{index}" and index < len(self.nodes):
            return index if self.nodes[index].op == op and not self.nodes[index].name else None
        return None

    def _by_name(self, name: str) -> int | None:
        if name in self.named:
            return self.named[name]
        begin = name.removeprefix("fused ")
        fitting = [one for one in self.named if begin == one or begin.startswith(f"{one}/")]
        return self.named[max(fitting, key=len)] if fitting else None

    def _by_weight(self, executed: Mapping[str, Any]) -> int | None:
        for tensor in executed["inputs"] or ():
            readers = self.readers.get(tensor, ())
            if tensor not in self.producer and len(readers) == 1:
                place = readers[0]
                if _kind(self.nodes[place].op) == _kind(executed["op"]):
                    return place
        return None

    def _by_output(self, executed: Mapping[str, Any]) -> int | None:
        op = executed["op"]
        for tensor in executed["outputs"] or ():
            if tensor in self.producer:
                place = self.producer[tensor]
                moved = op in _MOVES and self.nodes[place].op != op
                return None if moved else self._begin(place, op)
        return None

    def _begin(self, place: int, op: str) -> int:
        """Go up from the last of several fused nodes to the one of this operator, if there is."""
        around = [place]
        for _ in range(_FUSION_DEPTH):
            for one in around:
                if _kind(self.nodes[one].op) == _kind(op):
                    return one
            tensors = (tensor for one in around for tensor in self.nodes[one].inputs)
            around = [self.producer[tensor] for tensor in tensors if tensor in self.producer]
        return place

    def absorbed(self, origins: Sequence[int | None]) -> dict[int, list[str]]:
        """Return the operators that were fused into others: {place: operators behind it}.

        origins: of the executed nodes, in their order.
        """
        turn = {place: turn for turn, place in enumerate(origins) if place is not None}
        owner = {place: place for place in turn}
        found: dict[int, list[str]] = {}
        for place, node in enumerate(self.nodes):
            makers = (self.producer.get(tensor) for tensor in node.inputs)
            owners = [owner[maker] for maker in makers if maker is not None and maker in owner]
            if place in owner or not owners:
                continue
            # A sum is computed by the one of its sources that comes last.
            owner[place] = max(owners, key=lambda one: turn[one])
            if node.op not in (*_MOVES, "Dropout"):
                found.setdefault(owner[place], []).append(node.op)
        return found


def read_graph(path: Path) -> FileGraph:
    """Read a file's nodes; a file that is not ONNX, though the runtime knows it, has none."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        return FileGraph((), {}, {}, {})
    return graph_of(proto)


def graph_of(proto: Any) -> FileGraph:
    """Return the nodes of an onnx.ModelProto."""
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    shapes = _shapes(proto)
    axes = _channel_axes(nodes, shapes)
    layers = _layers(nodes, {tensor.name for tensor in proto.graph.initializer})
    names = Counter(node.name for node in nodes)
    keyed: list[FileNode] = []
    counts: Counter[tuple[str, str]] = Counter()
    last = ""
    for node, layer in zip(nodes, layers, strict=True):
        own_output = node.output[0] if node.output else ""
        own = node.name or own_output or node.op_type
        # Older exporters write the module's path here. Other names mostly count the nodes of their
        # kind, which is no use in a file that has one more or less.
        path = node.name if "/" in node.name and names[node.name] == 1 else None
        place = last = layer or path or last
        key = (place, node.op_type, counts[place, node.op_type])
        counts[place, node.op_type] += 1
        keyed.append(
            FileNode(
                name=node.name,
                op=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                layer=layer or own,
                key=key,
                axis=axes.get(own_output),
                channels=channels_of(shapes.get(own_output), axes.get(own_output)),
            )
        )
    return FileGraph(
        nodes=tuple(keyed),
        producer=_producers(nodes),
        readers=_readers(nodes),
        named={one.name: place for place, one in enumerate(keyed) if names[one.name] == 1},
    )


def _layers(nodes: Sequence[Any], constants: set[str]) -> list[str | None]:
    producer, readers = _producers(nodes), _readers(nodes)

    def parameters(node: Any) -> Iterator[tuple[str, str]]:
        """Yield (layer, "weight" or "bias") of the tensors that no other node reads."""
        for tensor in node.input:
            single = len(readers[tensor]) == 1
            while tensor in producer and nodes[producer[tensor]].op_type in _PASSES:
                tensor = nodes[producer[tensor]].input[0]
                single = single and len(readers[tensor]) == 1
            match = _PARAMETER.match(tensor)
            if tensor in constants and single and match:
                yield match[1], match[2]

    def layer(node: Any) -> str | None:
        found = {kind: name for name, kind in parameters(node)}
        return found.get("weight") or found.get("bias")

    layers = [layer(node) for node in nodes]
    for place, node in enumerate(nodes):
        # The transposed weight of a linear layer has lost its name; its bias is added behind it.
        if layers[place] is None and node.op_type == "MatMul":
            behind = readers[node.output[0]]
            if len(behind) == 1 and nodes[behind[0]].op_type == "Add":
                layers[place] = layers[behind[0]]
    return layers


def _producers(nodes: Sequence[Any]) -> dict[str, int]:
    return {tensor: place for place, node in enumerate(nodes) for tensor in node.output if tensor}


def _readers(nodes: Sequence[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for tensor in node.input:
            found.setdefault(tensor, []).append(place)
        for tensor in node.output:
            found.setdefault(tensor, [])
    return found


def _shapes(proto: Any) -> dict[str, list[int]]:
    """Return the known shapes of the tensors between nodes; 0 is an open size."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # it is only a column of the table; the binding's errors have no one type
        graph = proto.graph
    infos = [
        one for one in (*graph.value_info, *graph.output) if one.type.tensor_type.HasField("shape")
    ]
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in infos}


def _channel_axes(nodes: Sequence[Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return in which dimension each tensor has its channels, as far as its makers tell."""
    axes: dict[str, int] = {}
    for node in nodes:
        kind, known = _kind(node.op_type), [one for one in node.input if one in axes]
        axis = None
        if kind in ("Conv", "ConvTranspose") or "Pool" in kind or kind == "BatchNormalization":
            axis = 1
        elif kind in ("MatMul", "LayerNormalization"):
            axis = -1
        elif known and kind not in ("Reshape", "Transpose"):
            ranks = [len(shapes.get(tensor, ())) for tensor in (known[0], node.output[0])]
            axis = axes[known[0]] if ranks[0] == ranks[1] else None
        if axis is not None:
            axes.update(dict.fromkeys(node.output, axis))
    return axes


def channels_of(shape: Sequence[int] | None, axis: int | None) -> int | None:
    """Return the size of that dimension, None where it is not known."""
    if not shape or axis is None or axis >= len(shape):
        return None
    return shape[axis] or None


def _kind(op: str) -> str:
    """What an operator and its fused and quantised relatives have in common."""
    for kind, same in (("ConvTranspose", ""), ("Conv", ""), ("MatMul", ""), ("Gemm", "MatMul")):
        if kind in op:
            return same or kind
    return op
