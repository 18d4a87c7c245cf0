"""In which precision does a file compute? Read from its graph, not from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto

from prune2deploy.errors import ExportError
from prune2deploy.export.precision.graphs import WEIGHTY

Precision = Literal["fp32", "fp16", "int8"]

_TYPES: dict[int, Precision] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
_BITS: dict[Precision, int] = {"fp32": 32, "fp16": 16, "int8": 8}
# The same operators with quantisation inside, and where their weight is.
_QUANTISED = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


@dataclass(frozen=True)
class LayerCount:
    """How many layers, and how large their weights are in the file."""

    layers: int
    weight_bytes: int


def precision_of(path: Path) -> dict[Precision, LayerCount]:
    """Count the layers with constant weights by the precision they compute in.

    A layer counts as int8 where a runtime finds both its input and its weight
    quantised. Weights that are stored in int8 and used as floating-point numbers count
    by the latter, with the bytes they take in the file. Biases are not counted.

    Raises:
        ExportError: no such file, or not an ONNX model.
    """
    try:
        graph = onnx.load(path).graph
    except Exception as err:
        raise ExportError(f"{path} cannot be read as an ONNX model: {err}") from err
    found: dict[Precision, list[int]] = {"fp32": [], "fp16": [], "int8": []}
    trace = _Trace(graph)
    for node in graph.node:
        if node.op_type in _QUANTISED:
            weight = trace.constants.get(node.input[_QUANTISED[node.op_type]])
            precision: Precision | None = "int8"
        elif node.op_type in WEIGHTY:
            weight = trace.weight(node.input[1])
            precision = trace.precision(node)
        else:
            continue
        if weight is not None and precision is not None:
            size = 1
            for dim in weight.dims:
                size *= dim
            found[precision].append(size * _BITS[_TYPES[weight.data_type]] // 8)
    return {name: LayerCount(len(sizes), sum(sizes)) for name, sizes in found.items()}


class _Trace:
    """Follows tensors of a graph back to where they come from."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {t.name: t for t in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def weight(self, name: str) -> onnx.TensorProto | None:
        """Return the stored tensor behind casts and (de)quantisation; None: it is computed."""
        while name not in self.constants:
            maker = self._makers.get(name)
            if maker is None or maker.op_type not in (
                "Cast",
                "DequantizeLinear",
                "QuantizeLinear",
                "Transpose",
            ):
                return None
            name = maker.input[0]
        tensor = self.constants[name]
        return tensor if tensor.data_type in _TYPES else None

    def precision(self, node: onnx.NodeProto) -> Precision | None:
        if self._is_dequantised(node.input[0]) and self._is_dequantised(node.input[1]):
            return "int8"
        return self._float_type(node.input[1])

    def _is_dequantised(self, name: str) -> bool:
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            return self._is_dequantised(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _float_type(self, name: str) -> Precision | None:
        if name in self.constants:
            return _TYPES.get(self.constants[name].data_type)
        maker = self._makers[name]
        if maker.op_type == "Cast":
            return _TYPES.get(next(a.i for a in maker.attribute if a.name == "to"))
        # A dequantised tensor has the type of its scale.
        return self._float_type(maker.input[1 if maker.op_type == "DequantizeLinear" else 0])
