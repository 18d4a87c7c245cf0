"""A tiny problem: four classes of 1x6x6 images, told apart by the bright corner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.data import DataSource, open_data


@pytest.fixture
def corners(tmp_path: Path) -> Callable[..., DataSource]:
    """Open the tiny problem; options go to open_data."""

    def make(train: int = 64, test: int = 32, **options: Any) -> DataSource:
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", train), ("test", test)):
            labels = np.arange(count) % 4
            images = rng.normal(0, 0.3, (count, 1, 6, 6)).astype(np.float32)
            for image, label in zip(images, labels, strict=True):
                row, column = 3 * (label // 2), 3 * (label % 2)
                image[0, row : row + 3, column : column + 3] += 1
            arrays[f"x_{split}"] = images
            arrays[f"y_{split}"] = labels
        path = tmp_path / "corners.npz"
        np.savez(path, **arrays)
        return open_data("npz", root=path, input_shape=(1, 6, 6), **options)

    return make


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    """Build a small convolutional network, the same one each time, in eval mode."""

    def make(seed: int = 0, dropout: float = 0.0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(3),
                nn.Flatten(),
                nn.Dropout(dropout),
                nn.Linear(32, 4),
            )
        return model.eval()

    return make
