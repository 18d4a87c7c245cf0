"""Small image folders, written for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> WriteFolder:
    """Write `per_class` random images for each class below each of the given folders."""

    def write(
        folders: tuple[str, ...] = ("train", "test"),
        classes: tuple[str, ...] = ("cat", "dog"),
        per_class: int = 4,
        size: tuple[int, int] = (8, 8),
        suffix: str = "png",
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "images"
        for folder in folders:
            for name in classes:
                place = root / folder / name
                place.mkdir(parents=True)
                for number in range(per_class):
                    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{number}.{suffix}")
        return root

    return write
