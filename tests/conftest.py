"""What every test runs under."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # xdist runs one worker per core; more threads than cores are slower, and here much slower.
    torch.set_num_threads(1)
