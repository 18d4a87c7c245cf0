"""Small networks to convert, and what is asked about the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from prune2deploy.export import export_model_file

SHAPE = (3, 8, 8)
Images = NDArray[np.float32]


class Residual(nn.Module):
    """Five layers: three in a row, one of them beside a skip connection, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fourth = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.third(torch.relu(self.second(x))) + x)
        return self.last(torch.relu(self.fourth(x)).mean((2, 3)))


def network() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def images(*sizes: int, seed: int = 0) -> list[Images]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, *SHAPE), np.float32) for size in sizes]


def exported(model: nn.Module, path: Path, batch: int = 2) -> Path:
    export_model_file(model, path, input_shape=SHAPE, batch=batch, metadata={"classes": '["é"]'})
    return path


def kinds_of_weights(path: Path) -> dict[str, str]:
    return {
        tensor.name: TensorProto.DataType.Name(tensor.data_type)
        for tensor in onnx.load(path).graph.initializer
    }


def by_hand(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Images], opset: int = 18
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path
    )
    return path
