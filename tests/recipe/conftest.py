from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.recipe import parse_recipe

GOOD = """\
model: {source: digits:convnet, input: [1, 8, 8]}
data:
  source: digits
  normalize: none
pretrain: {epochs: 20, lr: 0.1}
prune:
  method: chip
  images: 64
  budget: {macs: 0.5}
finetune:
  epochs: 5
  lr: 0.05
"""


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """Read a recipe that is wrong; return the lines of the error."""

    def read(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            parse_recipe(text, Path("r.yaml"), overrides)
        lines = str(caught.value).splitlines()
        if len(lines) > 1:
            assert lines[0] == f"{len(lines) - 1} problems in the recipe"
            lines = lines[1:]
        return [line.strip() for line in lines]

    return read
