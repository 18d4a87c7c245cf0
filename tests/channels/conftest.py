"""The picture that small networks get, and weights that are the same every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
