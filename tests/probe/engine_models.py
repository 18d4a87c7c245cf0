"""Small ONNX files of each precision: a convolution, a rectifier and a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_model(
    path: Path, precision: str, batch: int | str = 1, channels: int = 8, operator: str = "Relu"
) -> Path:
    """Write a model from "x" (batch, 3, 16, 16) to "y" (batch, channels, 1, 1).

    precision: "fp32", "fp16" (all tensors), or "int8": quantized symmetrically, by operators.
    """
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    numbers: Any = np.float16 if precision == "fp16" else np.float32
    weight = np.random.default_rng(0).standard_normal((channels, 3, 3, 3)).astype(numbers)
    tensors, nodes, data, weights = [numpy_helper.from_array(weight, "w")], [], "x", "w"
    if precision == "int8":
        tensors, nodes = _quantized(weight)
        data, weights = "x_dq", "w_dq"
    nodes += [
        helper.make_node("Conv", [data, weights], ["h"], pads=[1] * 4, name="conv"),
        helper.make_node(operator, ["h"], ["r"], name="act"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", kind, [batch, channels, 1, 1])],
        tensors,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def _quantized(weight: Any) -> tuple[list[Any], list[Any]]:
    scale = np.float32(np.abs(weight).max() / 127)
    values = {
        "w_q": np.clip(np.round(weight / scale), -127, 127).astype(np.int8),
        "w_scale": scale,
        "x_scale": np.float32(4 / 127),
        "zero": np.int8(0),
    }
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "zero"], ["w_dq"]),
    ]
    return tensors, nodes
