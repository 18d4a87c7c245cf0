"""Tiny ONNX files, and a measurement short enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

QUICK = {
    "min_time_s": 0.02,
    "min_samples": 64,
    "min_blocks": 10,
    "turn_s": 0.002,
    "warmup_min_s": 0.02,
    "warmup_max_s": 0.2,
}

ConvModel = Callable[..., Path]


def save(path: Path, nodes: list[Any], shape: list[Any], weights: list[Any], kind: int) -> Path:
    """Write a model from input "x" of this shape and element type to output "y"."""
    source = helper.make_tensor_value_info("x", kind, shape)
    sink = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(nodes, "test", [source], [sink], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path
