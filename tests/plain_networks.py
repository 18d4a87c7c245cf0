"""Networks in a row, and an exporter of them that takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save
from torch import Tensor, nn

SIZE = 4
_OPERATORS: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.Conv2d: ("Conv", {"pads": [1, 1, 1, 1]}),
    nn.ReLU: ("Relu", {}),
    nn.AdaptiveAvgPool2d: ("GlobalAveragePool", {}),
    nn.Flatten: ("Flatten", {}),
    nn.Linear: ("Gemm", {"transB": 1}),
    nn.Identity: ("Identity", {}),
}


class Residual(nn.Module):
    """A block that adds a convolution's result to what it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def in_a_row(*widths: int, blocks: int = 0) -> nn.Sequential:
    """3×3 convolutions of these widths, blocks of the last width, and ten classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    inside = 3
    for outside in widths:
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
        inside = outside
    layers += [Residual(inside) for _ in range(blocks)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)]
    return nn.Sequential(*layers).eval()


def write_onnx(model: nn.Module, path: Path) -> None:
    """The graph that a real export has."""
    nodes: list[Any] = []
    weights: list[Any] = []
    at = "x"

    def add(name: str, layer: nn.Module) -> str:
        given = [at]
        for part in ("weight", "bias"):
            if hasattr(layer, part):
                values = getattr(layer, part).detach().numpy()
                weights.append(numpy_helper.from_array(values, f"{name}.{part}"))
                given.append(f"{name}.{part}")
        operator, settings = _OPERATORS[type(layer)]
        out = f"{name}.out"
        nodes.append(helper.make_node(operator, given, [out], name=f"/{name}", **settings))
        return out

    for name, layer in model.named_children():
        if isinstance(layer, Residual):
            both = [at, add(f"{name}.conv", layer.conv)]
            at = f"{name}.sum"
            nodes.append(helper.make_node("Add", both, [at], name=f"/{name}/Add"))
        else:
            at = add(name, layer)
    nodes[-1].output[0] = "y"
    save(path, nodes, [1, 3, SIZE, SIZE], weights, TensorProto.FLOAT)
