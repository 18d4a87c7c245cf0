"""The channels budget: shares of each group."""

from __future__ import annotations

import numpy as np
import pytest

from prune2deploy.budget import Widths, keep_shares
from prune2deploy.budget.shares import keep_count


@pytest.mark.parametrize(
    ("channels", "share", "expected"),
    [
        (10, 0.7, 7),  # 10 * (1 - 0.7) is 3.0000000000000004
        (10, 0.9, 9),  # 10 * (1 - 0.9) is 0.9999999999999998
        (100, 0.43, 43),
        (10, 0.55, 6),  # 4.5 go down to 4
        (64, 0.5, 32),
        (3, 0.5, 2),
        (3, 0.01, 1),
        (1, 0.5, 1),
        (7, 0.999, 7),
        (7, 1.0, 7),
    ],
)
def test_the_number_removed_is_rounded_down(channels: int, share: float, expected: int) -> None:
    assert keep_count(channels, share) == expected


@pytest.mark.parametrize("channels", [1, 2, 7, 10, 33, 64, 100, 1000])
def test_a_share_in_whole_channels_is_met_exactly(channels: int) -> None:
    for kept in range(1, channels + 1):
        assert keep_count(channels, kept / channels) == kept


def widths(*counts: int) -> Widths:
    return Widths("layer", counts)


def test_the_best_channels_of_each_group_stay() -> None:
    scores = [np.array([3.0, 1, 2, 5]), np.array([1.0, 9, 8])]
    decision = keep_shares(scores, [widths(4, 3, 2, 1), widths(3, 2, 1)], [0.5, 2 / 3])
    assert [k.tolist() for k in decision.kept] == [[0, 3], [1, 2]]
    assert decision.notes == ()


def test_widths_are_rounded_up_to_the_next_that_is_allowed() -> None:
    scores = [np.arange(24.0), np.arange(24.0)]
    decision = keep_shares(scores, [widths(24, 16, 8)] * 2, [0.5, 0.3])
    assert [len(k) for k in decision.kept] == [16, 8]
    (note,) = decision.notes  # 24 of 48 instead of 40 %
    assert "50.0% of the channels are kept where 40.0% were asked for" in note


def test_a_group_without_a_narrower_width_stays_whole_and_is_named() -> None:
    decision = keep_shares([np.arange(6.0)], [Widths("conv1", (6,))], [0.5])
    assert decision.kept[0].tolist() == list(range(6))
    assert decision.notes[0] == "No allowed width below the full one for: conv1 (6)."
    assert "100.0% of the channels are kept where 50.0% were asked for" in decision.notes[1]


def test_groups_without_a_score_or_a_share_stay_whole() -> None:
    decision = keep_shares(
        [None, np.arange(4.0)], [widths(4, 3, 2, 1), widths(4, 3, 2, 1)], [0.5, None]
    )
    assert [k.tolist() for k in decision.kept] == [[0, 1, 2, 3]] * 2
    assert decision.notes == ()


def test_of_equal_scores_the_lower_index_goes_first() -> None:
    scores = np.array([1.0, 0, 1, 1, 0, 1])
    kept = [
        keep_shares([scores], [widths(6, 5, 4, 3, 2, 1)], [n / 6]).kept[0].tolist()
        for n in (5, 4, 3, 2)
    ]
    assert kept == [[0, 2, 3, 4, 5], [0, 2, 3, 5], [2, 3, 5], [3, 5]]
