"""Which widths a group may have."""

from __future__ import annotations

import numpy as np
import pytest

from prune2deploy.budget import allowed_counts
from prune2deploy.budget.widths import Widths, best


@pytest.mark.parametrize(
    ("steps", "min_channels", "expected"),
    [
        ([5, 4, 3, 2, 1], None, (5, 4, 3, 2, 1)),  # a tenth, at least one
        ([30, 20, 10, 4, 3, 2], None, (30, 20, 10, 4, 3)),
        ([31, 20, 10, 4, 3], None, (31, 20, 10, 4)),  # 3.1 goes up
        ([64, 32, 16, 8], 16, (64, 32, 16)),
        ([64, 32, 16, 8], 1, (64, 32, 16, 8)),
        ([8], None, (8,)),
        ([8, 4], 100, (8,)),  # a narrow group stays whole
    ],
)
def test_enough_channels_are_kept(
    steps: list[int], min_channels: int | None, expected: tuple[int, ...]
) -> None:
    assert allowed_counts(steps, min_channels) == expected


def test_the_full_width_comes_first() -> None:
    assert Widths("x", (24, 16, 8)).full == 24


def test_best_returns_ascending_indices_of_the_highest() -> None:
    scores = np.array([0.5, 2.0, -1.0, 2.0, 1.0])
    assert best(scores, 5).tolist() == [0, 1, 2, 3, 4]
    assert best(scores, 3).tolist() == [1, 3, 4]
    assert best(scores, 1).tolist() == [3]
