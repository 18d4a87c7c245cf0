"""Which precision an ONNX file holds, read from its bytes: the device needs no onnx package."""

from __future__ import annotations

from typing import Any, Iterator

from .job import Refusal

# Numbers of fields and of element types in onnx.proto3.
_GRAPH, _NODE, _INITIALIZER, _OP_TYPE, _ATTRIBUTE, _TENSOR = 7, 1, 5, 4, 5, 5
_DIMS, _DATA_TYPE = 1, 2
_KINDS = {1: "fp32", 10: "fp16"}


def held_precision(content: bytes) -> dict[str, Any]:
    """Return {"precision": "fp32" | "fp16" | "int8", "half_tensors": bool} of an ONNX file.

    int8: it dequantizes something. fp16: more of its float weights (numbers, not tensors) are
    fp16 than fp32.

    Raises:
        Refusal: "not_onnx".
    """
    try:
        counts, quantized = _count(memoryview(content))
    except (IndexError, ValueError) as err:
        raise Refusal(
            "not_onnx", "the file is not ONNX, or it is cut short; export the model again"
        ) from err
    precision = "fp16" if counts["fp16"] > counts["fp32"] else "fp32"
    return {
        "precision": "int8" if quantized else precision,
        "half_tensors": counts["fp16"] > 0,
    }


def _count(content: memoryview) -> tuple[dict[str, int], bool]:
    counts, quantized, graphs = {"fp32": 0, "fp16": 0}, False, 0
    for number, graph in _fields(content):
        if number != _GRAPH or isinstance(graph, int):
            continue
        graphs += 1
        for inner, value in _fields(graph):
            tensors = [value] if inner == _INITIALIZER else []
            if inner == _NODE and not isinstance(value, int):
                operator, tensors = _node(value)
                quantized = quantized or operator == b"DequantizeLinear"
            for tensor in tensors:
                kind, size = _tensor(tensor)
                if kind in counts:
                    counts[kind] += size
    if not graphs:
        raise ValueError("no graph")
    return counts, quantized


def _node(content: memoryview) -> tuple[bytes, list[Any]]:
    """Return a node's operator and its attributes that are tensors: those of Constant."""
    operator, tensors = b"", []
    for number, value in _fields(content):
        if number == _OP_TYPE:
            operator = bytes(value)
        elif number == _ATTRIBUTE:
            tensors += [inner for at, inner in _fields(value) if at == _TENSOR]
    return operator, [tensor for tensor in tensors if not isinstance(tensor, int)]


def _tensor(content: memoryview) -> tuple[str | None, int]:
    kind, size = None, 1
    for number, value in _fields(content):
        if number == _DATA_TYPE:
            kind = _KINDS.get(value)
        elif number == _DIMS:
            for dim in [value] if isinstance(value, int) else _packed(value):
                size *= dim
    return kind, size


def _packed(content: memoryview) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protobuf message: an int, or the bytes of what has a length."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(content, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(content):
            raise ValueError("cut short")
        if kind == 2:
            yield tag >> 3, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number without an end")
