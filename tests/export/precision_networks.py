"""Small networks as files, for the tests of lower precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from prune2deploy.export import export_model_file, onnx_metadata

Images = list[npt.NDArray[np.float32]]

SHAPE = (3, 12, 12)
BATCH = 4


class Residual(nn.Module):
    """A stem, a depthwise convolution with a skip connection, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = nn.functional.relu6(self.depthwise(x))
        return self.head((x + self.pointwise(y)).mean((2, 3)))


def save_network(model: nn.Module, path: Path, opset: int | None = None) -> Path:
    """Export in the usual way, as the recipe's runs do."""
    export_model_file(
        model.eval(),
        path,
        input_shape=SHAPE,
        batch=BATCH,
        opset=opset,
        metadata=onnx_metadata(input_shape=SHAPE, classes=list("abcde")),
    )
    return path


def random_images(*sizes: int, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, *SHAPE), np.float32) for size in sizes]
