"""Budgets of time: the solver against trying everything, and what it must never do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import linprog

from prune2deploy.budget import Widths
from prune2deploy.budget.latency import (
    Counts,
    Parts,
    importance,
    keep_under_times,
    value_of,
)
from prune2deploy.budget.latency_bound import upper_bound
from prune2deploy.errors import BudgetError

Budget = tuple[Parts, float]


@dataclass(frozen=True)
class Problem:
    scores: list[np.ndarray | None]
    widths: list[Widths]
    parts: Parts

    @property
    def full(self) -> Counts:
        return np.array([w.full for w in self.widths])

    @property
    def lowest(self) -> Counts:
        return np.array([min(w.counts) for w in self.widths])

    def at(self, share: float) -> float:
        """A budget between the narrowest (0) and all (1)."""
        low, high = self.parts.total(self.lowest), self.parts.total(self.full)
        return low + share * (high - low)


def layer(inside: int | None, outside: int | None, step: int, cost: float) -> Callable[..., float]:
    """A layer's time: a staircase in both widths."""

    def time(kept: Counts) -> float:
        sizes = [3 if g is None else math.ceil(kept[g] / step) * step for g in (inside, outside)]
        return cost * sizes[0] * sizes[1]

    return time


def chain(seed: int, groups: int, step: int = 4) -> Problem:
    """Layers from group to group, and one from the first to the last."""
    random = np.random.default_rng(seed)
    ends: list[tuple[int | None, int | None]] = [(None, 0)]
    ends += [(g, g + 1) for g in range(groups - 1)]
    ends += [(groups - 1, None), (0, groups - 1)]
    costs = random.uniform(0.2, 2, len(ends))
    parts = Parts(
        times=[layer(a, b, step, float(c)) for (a, b), c in zip(ends, costs, strict=True)],
        groups=[[g for g in end if g is not None] for end in ends],
        rest=float(random.uniform(0, 50)),
    )
    sizes = random.integers(4, 9, groups) * 4
    widths = [
        Widths(
            f"g{n}", tuple(int(size) - 4 * k for k in range(random.integers(3, 6)) if size > 4 * k)
        )
        for n, size in enumerate(sizes)
    ]
    return Problem([random.random(w.full) for w in widths], widths, parts)


def every(widths: Sequence[Widths]) -> Iterator[Counts]:
    for counts in itertools.product(*(w.counts for w in widths)):
        yield np.array(counts)


def best_of(problem: Problem, budgets: Sequence[Budget]) -> float:
    """By trying everything."""
    return max(
        value_of(problem.scores, counts)
        for counts in every(problem.widths)
        if all(parts.total(counts) <= most for parts, most in budgets)
    )


PROBLEMS = [(seed, 3 + seed % 3, share) for seed in range(12) for share in (0.15, 0.5, 0.85)]


@pytest.mark.parametrize(("seed", "groups", "share"), PROBLEMS)
def test_the_solver_is_near_the_best_and_never_over_the_budget(
    seed: int, groups: int, share: float
) -> None:
    problem = chain(seed, groups)
    budgets = [(problem.parts, problem.at(share))]
    decision, counts = keep_under_times(problem.scores, problem.widths, budgets)
    assert problem.parts.total(counts) <= problem.at(share)
    assert [len(k) for k in decision.kept] == counts.tolist()
    for width, score, stays in zip(problem.widths, problem.scores, decision.kept, strict=True):
        assert len(stays) in width.counts
        assert score is not None
        assert stays.tolist() == sorted(np.argsort(score)[len(score) - len(stays) :].tolist())
    found, best = value_of(problem.scores, counts), best_of(problem, budgets)
    assert best * 0.95 <= found <= best + 1e-9
    bound = upper_bound(problem.scores, problem.widths, budgets)
    assert bound is not None
    assert best <= bound + 1e-7
    assert bound <= best + 0.1  # a bound that is always 1 would tell nothing


def test_on_average_the_solver_is_within_1_percent_of_the_best() -> None:
    shares = []
    for seed, groups, share in PROBLEMS:
        problem = chain(seed, groups)
        budgets = [(problem.parts, problem.at(share))]
        _, counts = keep_under_times(problem.scores, problem.widths, budgets)
        shares.append(value_of(problem.scores, counts) / best_of(problem, budgets))
    assert np.mean(shares) >= 0.99


def stream(seed: int, blocks: int = 5) -> Problem:
    """Residual blocks: each has a layer from the stream into it and one back."""
    random = np.random.default_rng(seed)
    widths = [Widths("stream", (16, 8))]
    widths += [Widths(f"block{n}", (32, 24, 16, 8)) for n in range(blocks)]
    scores: list[np.ndarray | None] = [
        random.uniform(0.5, 1.5, 16) * blocks * random.uniform(0.8, 1.6)
    ]
    scores += [random.uniform(0.5, 1.5, 32) for _ in range(blocks)]
    groups = [pair for n in range(1, blocks + 1) for pair in ((0, n), (n, 0))]
    return Problem(scores, widths, Parts([layer(a, b, 8, 1.0) for a, b in groups], groups))


@pytest.mark.parametrize("seed", [4, 7])
def test_a_stream_stays_wide_where_all_blocks_have_to_give_way_for_it(seed: int) -> None:
    # From the full widths the stream goes first, and no exchange of two groups brings it back.
    problem = stream(seed)
    budgets = [(problem.parts, problem.at(0.6))]
    _, counts = keep_under_times(problem.scores, problem.widths, budgets)
    assert counts[0] == 16
    assert value_of(problem.scores, counts) == pytest.approx(best_of(problem, budgets))


def test_a_budget_for_everything_keeps_everything() -> None:
    problem = chain(0, 4)
    whole = [(problem.parts, problem.at(1) * (1 + 1e-9))]
    decision, counts = keep_under_times(problem.scores, problem.widths, whole)
    assert counts.tolist() == problem.full.tolist()
    assert [k.tolist() for k in decision.kept] == [list(range(n)) for n in problem.full]
    assert upper_bound(problem.scores, problem.widths, whole) == pytest.approx(1)


def test_the_narrowest_widths_are_still_found() -> None:
    problem = chain(1, 4)
    _, counts = keep_under_times(
        problem.scores, problem.widths, [(problem.parts, problem.at(0) * (1 + 1e-9))]
    )
    assert counts.tolist() == problem.lowest.tolist()


def test_an_unreachable_time_says_what_it_takes() -> None:
    problem = chain(2, 3)
    fastest = problem.at(0)
    with pytest.raises(BudgetError, match=f"narrowest it takes {fastest:.4g}, and {1:.4g} were"):
        keep_under_times(problem.scores, problem.widths, [(problem.parts, 1.0)])
    assert upper_bound(problem.scores, problem.widths, [(problem.parts, 1.0)]) is None


def test_a_group_without_scores_stays_whole() -> None:
    problem = chain(3, 4)
    problem.scores[1] = None
    lowest = problem.lowest
    lowest[1] = problem.widths[1].full
    most = (problem.parts.total(lowest) + problem.at(1)) / 2
    budgets = [(problem.parts, most)]
    decision, counts = keep_under_times(problem.scores, problem.widths, budgets)
    assert counts[1] == problem.widths[1].full
    assert decision.kept[1].tolist() == list(range(problem.widths[1].full))
    assert problem.parts.total(counts) <= most
    bound = upper_bound(problem.scores, problem.widths, budgets)
    assert bound is not None
    assert value_of(problem.scores, counts) <= bound + 1e-7
    # What only that group could give cannot be had.
    with pytest.raises(BudgetError):
        keep_under_times(
            problem.scores, problem.widths, [(problem.parts, problem.parts.total(lowest) * 0.999)]
        )


def channels(counts: Counts) -> int:
    return int(counts.sum())


@pytest.mark.parametrize("seed", range(6))
def test_a_limit_beside_the_time_holds(seed: int) -> None:
    problem = chain(seed, 4)
    most = int((problem.lowest.sum() + problem.full.sum()) / 2)
    budgets = [(problem.parts, problem.at(0.8))]
    _, free = keep_under_times(problem.scores, problem.widths, budgets)
    assert channels(free) > most, "the limit would not be felt"
    _, counts = keep_under_times(problem.scores, problem.widths, budgets, [(channels, float(most))])
    assert channels(counts) <= most
    assert problem.parts.total(counts) <= budgets[0][1]
    best = max(
        value_of(problem.scores, c)
        for c in every(problem.widths)
        if problem.parts.total(c) <= budgets[0][1] and channels(c) <= most
    )
    assert value_of(problem.scores, counts) >= 0.96 * best


def test_a_limit_that_cannot_be_held_is_said() -> None:
    problem = chain(0, 3)
    with pytest.raises(BudgetError, match=r"a limit of 5 cannot be held: \d+ remain"):
        keep_under_times(
            problem.scores, problem.widths, [(problem.parts, problem.at(0.5))], [(channels, 5.0)]
        )


@pytest.mark.parametrize("seed", range(8))
def test_two_budgets_both_hold(seed: int) -> None:
    one = chain(seed, 4)
    other = chain(seed + 100, 4, step=8).parts  # another device: other times of the same groups
    middle = (other.total(one.lowest) + other.total(one.full)) / 2
    budgets = [(one.parts, one.at(0.5)), (other, middle)]
    _, counts = keep_under_times(one.scores, one.widths, budgets)
    assert all(parts.total(counts) <= most for parts, most in budgets)
    best = best_of(one, budgets)
    assert value_of(one.scores, counts) >= 0.95 * best
    bound = upper_bound(one.scores, one.widths, budgets)
    assert bound is not None
    assert best <= bound + 1e-7
    # The second budget binds as well: it makes the bound no looser.
    alone = upper_bound(one.scores, one.widths, budgets[:1])
    assert alone is not None
    assert bound <= alone + 1e-7


def test_widths_that_gain_no_time_are_not_given_up() -> None:
    # On a staircase of 8, 16 channels cost what 9 do: there is no reason to keep fewer than 16.
    parts = Parts([layer(None, 0, 8, 1.0)], [[0]])
    widths = [Widths("g", tuple(range(24, 0, -1)))]
    _, counts = keep_under_times([np.ones(24)], widths, [(parts, 3 * 16.0)])
    assert counts.tolist() == [16]


def test_the_price_finds_what_is_worth_little_for_its_time() -> None:
    # Equal times; the scores of the second group are ten times those of the first.
    parts = Parts([layer(None, 0, 1, 1.0), layer(None, 1, 1, 1.0)], [[0], [1]])
    widths = [Widths("a", tuple(range(8, 0, -1))), Widths("b", tuple(range(8, 0, -1)))]
    scores = [np.full(8, 0.1), np.ones(8)]
    _, counts = keep_under_times(scores, widths, [(parts, 3 * 10.0)])
    assert counts.tolist() == [2, 8]


def best_mixture(problem: Problem, budgets: Sequence[Budget]) -> float:
    """The best bound that prices can give: the most of a mixture of all counts there are."""
    counts = list(every(problem.widths))
    answer = linprog(
        [-value_of(problem.scores, one) for one in counts],
        A_ub=[[parts.total(one) / most for one in counts] for parts, most in budgets],
        b_ub=[1.0] * len(budgets),
        A_eq=[[1.0] * len(counts)],
        b_eq=[1.0],
    )
    return -float(answer.fun)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_bound_is_the_best_that_prices_of_time_give(seed: int, share: float) -> None:
    problem = chain(seed, 3 + seed % 3)
    other = chain(seed + 100, 3 + seed % 3, step=8).parts
    budgets = [(problem.parts, problem.at(share)), (other, other.total(problem.full) * 0.7)]
    for some in (budgets[:1], budgets):
        bound = upper_bound(problem.scores, problem.widths, some)
        assert bound == pytest.approx(best_mixture(problem, some), abs=2e-5)


def test_the_bound_of_a_part_that_depends_on_three_groups() -> None:
    problem = chain(0, 3)
    parts = Parts([lambda kept: float(kept.sum()), layer(2, 0, 4, 0.1)], [[0, 1, 2], [2, 0]])
    budgets = [(parts, parts.total(problem.full) * 0.7)]
    bound = upper_bound(problem.scores, problem.widths, budgets)
    assert bound == pytest.approx(best_mixture(problem, budgets), abs=2e-5)
    _, counts = keep_under_times(problem.scores, problem.widths, budgets)
    assert parts.total(counts) <= budgets[0][1]


def test_no_bound_where_groups_are_joined_densely() -> None:
    widths = [Widths(f"g{n}", tuple(range(200, 0, -1))) for n in range(4)]
    pairs = list(itertools.combinations(range(4), 2))
    dense = Parts([layer(a, b, 1, 1.0) for a, b in pairs], pairs)
    assert upper_bound([np.ones(200)] * 4, widths, [(dense, 1e5)]) is None
    tree = Parts([layer(a, b, 1, 1.0) for a, b in pairs[:3]], pairs[:3])
    assert upper_bound([np.ones(200)] * 4, widths, [(tree, 1e5)]) is not None


def test_what_has_no_choice_takes_its_time_from_the_bound() -> None:
    problem = chain(5, 4)
    problem.scores[2] = None
    budgets = [(problem.parts, problem.at(0.9))]
    fixed = [Widths(w.name, w.counts[:1]) if n == 2 else w for n, w in enumerate(problem.widths)]
    same = Problem(problem.scores, fixed, problem.parts)
    bound = upper_bound(problem.scores, problem.widths, budgets)
    assert bound == pytest.approx(best_mixture(same, budgets), abs=2e-5)


def test_the_share_of_the_importance() -> None:
    scores: list[np.ndarray | None] = [np.array([3.0, 1.0, 2.0]), None, np.array([4.0, 0.0])]
    assert value_of(scores, np.array([3, 5, 2])) == 1
    assert value_of(scores, np.array([2, 5, 1])) == pytest.approx(9 / 10)
    assert value_of(scores, np.array([1, 1, 1])) == pytest.approx(7 / 10)
    assert value_of([None], np.array([4])) == 1


def test_more_channels_are_never_worth_less() -> None:
    width = Widths("g", (4, 3, 2, 1))
    scores = np.array([-2.0, 1.0, -1.0, 0.5])
    worth = importance(scores, width)
    assert [worth[n] for n in (1, 2, 3, 4)] == [3.0, 5.5, 6.5, 6.5]
    # and value_of counts in the same way
    assert value_of([scores], np.array([2])) == pytest.approx(5.5 / 6.5)


def test_scores_of_nothing_but_zeros_are_no_obstacle() -> None:
    problem = chain(0, 3)
    zeros: list[np.ndarray | None] = [np.zeros(w.full) for w in problem.widths]
    budgets = [(problem.parts, problem.at(0.4))]
    _, counts = keep_under_times(zeros, problem.widths, budgets)
    assert problem.parts.total(counts) <= budgets[0][1]
    assert value_of(zeros, counts) == 1
    assert upper_bound(zeros, problem.widths, budgets) == 1
