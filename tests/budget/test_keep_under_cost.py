"""The macs and params budgets, on costs small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2deploy.budget import Decision, Widths, keep_under_cost
from prune2deploy.budget.cost import TOLERANCE
from prune2deploy.errors import BudgetError


def steps_of_one(*sizes: int) -> list[Widths]:
    return [Widths(f"g{n}", tuple(range(size, 0, -1))) for n, size in enumerate(sizes)]


def total(counts: np.ndarray) -> int:
    """Every channel costs one."""
    return int(counts.sum())


def kept(decision: Decision) -> list[list[int]]:
    return [k.tolist() for k in decision.kept]


def test_the_lowest_scores_of_all_groups_go_first() -> None:
    scores = [np.array([5.0, 1.0, 6.0]), np.array([2.0, 8.0, 3.0, 9.0])]
    decision = keep_under_cost(scores, steps_of_one(3, 4), total, 4 / 7, "MACs")
    assert kept(decision) == [[0, 2], [1, 3]]
    assert decision.notes == ()


def test_a_consumer_gets_cheaper_too() -> None:
    # 3 -> 4 -> 2 at one position costs 12 + 8 = 20; 9 + 6 = 15 with one channel less.
    def chain(counts: np.ndarray) -> int:
        return int(3 * counts[0] + counts[0] * 2)

    scores = [np.array([4.0, 1.0, 3.0, 2.0])]
    assert kept(keep_under_cost(scores, steps_of_one(4), chain, 0.75, "MACs")) == [[0, 2, 3]]


def test_a_step_of_several_channels_counts_by_their_mean() -> None:
    widths = [Widths("a", (4, 2)), Widths("b", (4, 2))]
    # The two lowest of a: 1 and 9, mean 5; of b: 3 and 4, mean 3.5.
    scores = [np.array([1.0, 9.0, 10.0, 11.0]), np.array([4.0, 20.0, 3.0, 21.0])]
    decision = keep_under_cost(scores, widths, total, 0.75, "MACs")
    assert kept(decision) == [[0, 1, 2, 3], [1, 3]]


def test_of_equal_scores_the_lower_group_and_the_lower_index_go_first() -> None:
    scores = [np.ones(3), np.ones(3)]
    widths = steps_of_one(3, 3)
    assert kept(keep_under_cost(scores, widths, total, 5 / 6, "MACs")) == [[1, 2], [0, 1, 2]]
    assert kept(keep_under_cost(scores, widths, total, 4 / 6, "MACs")) == [[2], [0, 1, 2]]


def test_a_step_too_large_for_the_target_is_passed_over_for_smaller_ones() -> None:
    # Group 0 has the lowest scores, and its only step removes 50 at once.
    widths = [Widths("big", (60, 10)), Widths("small", tuple(range(40, 0, -1)))]
    scores = [np.zeros(60), np.arange(1.0, 41.0)]
    decision = keep_under_cost(scores, widths, total, 0.8, "MACs")
    assert [len(k) for k in decision.kept] == [60, 20]
    assert decision.notes == ()


def test_widths_too_coarse_for_the_target_are_said_to_be() -> None:
    widths = [Widths("a", (16, 8)), Widths("b", (16, 8))]
    decision = keep_under_cost([np.ones(16), np.ones(16)], widths, total, 0.6, "parameters")
    assert [len(k) for k in decision.kept] == [8, 8]  # 50 % is nearer to 60 % than 75 %
    (note,) = decision.notes
    assert "of the parameters are kept where 60.0% were asked for" in note
    assert "smaller round_to" in note


def test_the_nearer_side_of_a_coarse_target_is_taken() -> None:
    widths = [Widths("a", (100, 50))]
    assert len(keep_under_cost([np.ones(100)], widths, total, 0.55, "MACs").kept[0]) == 50
    assert len(keep_under_cost([np.ones(100)], widths, total, 0.9, "MACs").kept[0]) == 100


def test_a_group_without_scores_stays_whole() -> None:
    scores = [None, np.arange(8.0)]
    decision = keep_under_cost(scores, steps_of_one(4, 8), total, 0.5, "MACs")
    assert kept(decision) == [[0, 1, 2, 3], [6, 7]]


def test_an_unreachable_target_says_what_was_found_and_what_to_do() -> None:
    widths = [Widths("conv1", (8,)), Widths("conv2", (8, 4))]
    with pytest.raises(BudgetError) as caught:
        keep_under_cost([np.ones(8), np.ones(8)], widths, total, 0.3, "MACs")
    message = str(caught.value)
    assert "keeps 30.0% of the MACs" in message
    assert "75.0% are left (1 steps over 2 groups" in message
    assert "1 groups have no narrower width: conv1" in message
    assert "larger share, or lower round_to or min_channels, or exclude less" in message


def test_the_lowest_cost_is_still_reachable() -> None:
    decision = keep_under_cost([np.ones(8)], [Widths("a", (8, 4, 2))], total, 0.25, "MACs")
    assert len(decision.kept[0]) == 2
    # and within the tolerance just above the target
    decision = keep_under_cost([np.ones(100)], [Widths("a", (100, 51))], total, 0.505, "MACs")
    assert len(decision.kept[0]) == 51
    assert decision.notes == ()


GROUPS = st.lists(st.integers(2, 40), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    sizes=GROUPS,
    share=st.floats(0.05, 0.95),
    round_to=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 99),
)
def test_any_decision_is_near_the_target_or_says_why(
    sizes: list[int], share: float, round_to: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = [random.random(n) for n in sizes]
    weights = random.integers(1, 20, len(sizes))
    widths = [
        Widths("g", (n, *(k for k in range(n - 1, 0, -1) if k % round_to == 0))) for n in sizes
    ]

    def cost(counts: np.ndarray) -> int:
        around = np.concatenate([[3], counts, [2]])
        return int((around[1:-1] * weights).sum() + (around[:-1] * around[1:]).sum())

    full = cost(np.array(sizes))
    lowest = cost(np.array([w.counts[-1] for w in widths])) / full
    try:
        decision = keep_under_cost(scores, widths, cost, share, "MACs")
    except BudgetError:
        assert lowest > share * (1 + TOLERANCE)
        return
    assert lowest <= share * (1 + TOLERANCE)
    counts = np.array([len(k) for k in decision.kept])
    found = cost(counts) / full
    assert bool(decision.notes) == (abs(found - share) > TOLERANCE * share)
    for width, score, stays in zip(widths, scores, decision.kept, strict=True):
        assert len(stays) in width.counts
        # The best of each group stay, in their order.
        assert stays.tolist() == sorted(np.argsort(score)[len(score) - len(stays) :].tolist())


def test_a_smaller_share_never_costs_more() -> None:
    random = np.random.default_rng(0)
    sizes = [24, 32, 48, 16]
    scores = [random.random(n) for n in sizes]
    for step in (1, 8):
        widths = [Widths("g", tuple(range(n, 0, -step))) for n in sizes]
        costs = [
            sum(len(k) for k in keep_under_cost(scores, widths, total, s / 100, "MACs").kept)
            for s in range(95, 30, -5)
        ]
        assert costs == sorted(costs, reverse=True)
