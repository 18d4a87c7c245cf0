"""The nodes of an ONNX file, read without the onnx package and without its weights.

A file is a protobuf message: (number, wire type) and a value, again and again. The numbers are
those of onnx.proto: a model's graph is 7; a graph's nodes are 1; of a node, inputs are 1, outputs
2, its operator is 4.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Iterator

_GRAPH, _NODE = 7, 1
_NODE_FIELDS = {1: "inputs", 2: "outputs", 4: "op"}
_FIXED_SIZES = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2


def read_nodes(path: str) -> list[dict[str, Any]]:
    """Return {"op", "inputs", "outputs"} of each node, in the order of the file.

    Raises ValueError where the file is no protobuf message.
    """
    nodes = []
    with open(path, "rb") as file:
        for number, size in _fields(file, None):
            if number != _GRAPH:
                continue
            for inner, inner_size in _fields(file, file.tell() + size):
                if inner == _NODE:
                    nodes.append(_node(file.read(inner_size)))
    return nodes


def _node(content: bytes) -> dict[str, Any]:
    node: dict[str, Any] = {"op": "", "inputs": [], "outputs": []}
    stream = io.BytesIO(content)
    for number, size in _fields(stream, len(content)):
        name = _NODE_FIELDS.get(number)
        if name is not None:
            text = stream.read(size).decode()
            node[name] = text if name == "op" else [*node[name], text]
    return node


def _fields(stream: BinaryIO, end: int | None) -> Iterator[tuple[int, int]]:
    """Yield (number, size in bytes) of each field of the second kind, at the start of its value.

    Whoever takes it may read the value or leave it; the next step goes to its end.
    """
    while end is None or stream.tell() < end:
        key = _varint(stream)
        if key is None:
            return
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _varint(stream)
        elif kind in _FIXED_SIZES:
            stream.seek(_FIXED_SIZES[kind], io.SEEK_CUR)
        elif kind == _BYTES:
            size = _varint(stream) or 0
            after = stream.tell() + size
            yield number, size
            stream.seek(after)
        else:
            raise ValueError(f"wire type {kind} in a protobuf message")


def _varint(stream: BinaryIO) -> int | None:
    """Return the next number, seven bits per byte, or None at the end of the stream."""
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
