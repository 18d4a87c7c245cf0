"""Scores of different groups on one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prune2deploy.budget import comparable


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [3.0, 4.0, 5.0, 0.0]),
        ("mean", [1.0, 4 / 3, 5 / 3, 0.0]),
        ("max", [0.6, 0.8, 1.0, 0.0]),
        ("l2", [3 / 12.5**0.5, 4 / 12.5**0.5, 5 / 12.5**0.5, 0.0]),
        ("rank", [0.5, 0.75, 1.0, 0.25]),
    ],
)
def test_each_way_by_hand(how: Any, expected: list[float]) -> None:
    scores = np.array([3.0, 4.0, 5.0, 0.0])
    assert comparable(scores, how) == pytest.approx(expected)
    assert scores.tolist() == [3, 4, 5, 0]


@pytest.mark.parametrize("how", ["mean", "max", "l2", "rank"])
def test_a_layers_own_scale_does_not_matter(how: Any) -> None:
    scores = np.random.default_rng(0).random(20)
    assert comparable(1000 * scores, how) == pytest.approx(comparable(scores, how))


@pytest.mark.parametrize("how", ["none", "mean", "max", "l2"])
def test_zeros_stay_zeros(how: Any) -> None:
    assert comparable(np.zeros(3), how).tolist() == [0, 0, 0]


@pytest.mark.parametrize("how", ["none", "mean", "max", "l2", "rank"])
def test_the_order_within_a_group_stays(how: Any) -> None:
    scores = np.random.default_rng(1).normal(size=50)
    assert (np.argsort(comparable(scores, how)) == np.argsort(scores)).all()


def test_equal_scores_rank_by_index() -> None:
    assert comparable(np.array([1.0, 0.0, 1.0, 0.0]), "rank").tolist() == [0.75, 0.25, 1.0, 0.5]
