"""The `latency_ms` and `speedup` budgets: the most importance that a time allows.

Which widths to keep is a knapsack over steps in which the time of a layer depends on two groups at
once, its input's and its output's. It is solved by Lagrange's multiplier: for a price of time,
each group in turn takes the width that is best for its neighbours' present widths, until nothing
changes; the price is halved in on until the time fits, and what is left over is spent greedily.
How far from the best that can be is bounded by a linear program, where every layer depends on two
groups at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prune2deploy.budget.widths import Decision, Scores, Widths, best
from prune2deploy.errors import BudgetError

Counts = npt.NDArray[np.int64]

_PRICES = 40
_SWEEPS = 30
_NEAR = 1e-3  # prices that differ by less give the same widths, or nearly
_BOUND_VARIABLES = 20_000  # a larger linear program takes too long for what it tells
_BOUND_TIME_S = 2.0


@dataclass(frozen=True)
class Parts:
    """A time that is a sum of parts, each of which depends on few groups.

    times: per part its time from the counts of all groups, any unit. groups: per part the groups
    that it depends on. rest: what depends on none.
    """

    times: Sequence[Callable[[Counts], float]]
    groups: Sequence[Sequence[int]]
    rest: float = 0.0

    def total(self, kept: Counts) -> float:
        """The whole time."""
        return self.rest + sum(time(kept) for time in self.times)


def importance(scores: Scores | None, width: Widths) -> dict[int, float]:
    """What a group is worth at each width: the sum of the scores that stay.

    Scores below zero count from the lowest, so that more channels are never worth less.
    """
    if scores is None:
        return {width.full: 0.0}
    ordered = np.sort(scores)[::-1]
    sums = np.concatenate([[0.0], np.cumsum(ordered - min(0.0, float(ordered[-1])))])
    return {count: float(sums[count]) for count in width.counts}


def keep_under_times(
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    budgets: Sequence[tuple[Parts, float]],
    limits: Sequence[tuple[Callable[[Counts], int], float]] = (),
) -> tuple[Decision, Counts]:
    """Keep the most importance while every time and every limit holds.

    Args:
        scores: per group shape (size,), comparable between groups, higher means keep; None: the
            group stays whole.
        budgets: a time in parts and the most it may be, for each device.
        limits: further costs of the counts, and the most each may be.

    Raises:
        BudgetError: even the narrowest widths take longer, or cost more.
    """
    worth = [importance(s, w) for s, w in zip(scores, widths, strict=True)]
    solver = _Solver(worth, widths, budgets, limits)
    counts = solver.solve()
    kept = tuple(
        np.arange(w.full) if s is None else best(s, int(n))
        for s, w, n in zip(scores, widths, counts, strict=True)
    )
    return Decision(kept), counts


def value_of(scores: Sequence[Scores | None], counts: Counts) -> float:
    """The share of all importance that counts keep, 0 to 1."""
    kept = total = 0.0
    for score, count in zip(scores, counts, strict=True):
        if score is None:
            continue
        ordered = np.sort(score)[::-1]
        ordered = ordered - min(0.0, float(ordered[-1]))
        kept += float(ordered[: int(count)].sum())
        total += float(ordered.sum())
    return kept / total if total else 1.0


def upper_bound(
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    budgets: Sequence[tuple[Parts, float]],
) -> float | None:
    """No widths within the budgets keep more than this share of the importance, 0 to 1.

    By a linear program in which a group may be a mixture of its widths, and a part's pair of
    groups a mixture of pairs of widths that agrees with both. None: a part depends on more than
    two groups, the program is large or takes long, or nothing is within the budgets.
    """
    worth = [importance(s, w) for s, w in zip(scores, widths, strict=True)]
    if any(len(groups) > 2 for parts, _ in budgets for groups in parts.groups):
        return None
    program = _Program(
        worth, [tuple(v) for v in worth], np.array([w.full for w in widths], dtype=np.int64)
    )
    most = sum(max(values.values()) for values in worth)
    if not most:
        return 1.0
    if program.size([parts for parts, _ in budgets]) > _BOUND_VARIABLES:
        return None
    found = program.solved(budgets)
    return None if found is None else min(1.0, found / most)


class _Program:
    """The linear program of `upper_bound`: one variable per block of groups and their widths.

    A block is one group or a pair, for which there is a part of the time.
    """

    def __init__(
        self, worth: Sequence[dict[int, float]], options: Sequence[tuple[int, ...]], full: Counts
    ) -> None:
        self.worth = worth
        self.options = options
        self.full = full

    def _block(self, groups: Sequence[int]) -> tuple[int, ...]:
        """The groups of a part that have a choice."""
        return tuple(sorted({group for group in groups if len(self.options[group]) > 1}))

    def _blocks(self, budgets: Sequence[Parts]) -> list[tuple[int, ...]]:
        """Single groups first, each at its place; then the pairs."""
        used = (self._block(groups) for parts in budgets for groups in parts.groups)
        pairs = sorted({block for block in used if len(block) == 2})
        return [*((group,) for group in range(len(self.options))), *pairs]

    def size(self, budgets: Sequence[Parts]) -> int:
        """How many variables it has."""
        return sum(len(self._choices(block)) for block in self._blocks(budgets))

    def _choices(self, block: tuple[int, ...]) -> list[tuple[int, ...]]:
        return list(itertools.product(*(self.options[group] for group in block)))

    def solved(self, budgets: Sequence[tuple[Parts, float]]) -> float | None:
        """The most importance of a mixture, None where none was found in time."""
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix

        blocks = self._blocks([parts for parts, _ in budgets])
        starts = np.cumsum([0, *(len(self._choices(block)) for block in blocks)])
        gains = np.zeros(starts[-1])
        for group, values in enumerate(self.worth):
            gains[starts[group] : starts[group + 1]] = [values[n] for n in self.options[group]]
        rows, columns, values_, right = self._agreement(blocks, starts)
        shares = [self._times(parts, most, blocks, starts) for parts, most in budgets]
        # The stubs know no sparse matrices here; scipy takes them.
        agree: Any = csr_matrix((values_, (rows, columns)), shape=(len(right), int(starts[-1])))
        answer = linprog(
            -gains,
            A_ub=np.array([times for times, _ in shares]),
            b_ub=np.array([1 - fixed for _, fixed in shares]),
            A_eq=agree,
            b_eq=np.array(right),
            method="highs",
            options={"time_limit": _BOUND_TIME_S},
        )
        return None if answer.status or answer.fun is None else -float(answer.fun)

    def _agreement(
        self, blocks: Sequence[tuple[int, ...]], starts: npt.NDArray[np.int64]
    ) -> tuple[list[int], list[int], list[float], list[float]]:
        """Equations, as a sparse matrix: groups are whole, and pairs add up to their groups."""
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        right: list[float] = []
        for number, block in enumerate(blocks):
            choices = self._choices(block)
            if len(block) == 1:
                rows += [len(right)] * len(choices)
                columns += range(starts[number], starts[number + 1])
                values += [1.0] * len(choices)
                right.append(1.0)
                continue
            for place, group in enumerate(block):
                for option_number, option in enumerate(self.options[group]):
                    mine = [n for n, choice in enumerate(choices) if choice[place] == option]
                    rows += [len(right)] * (len(mine) + 1)
                    columns += [int(starts[number]) + n for n in mine]
                    columns.append(int(starts[group]) + option_number)
                    values += [*([1.0] * len(mine)), -1.0]
                    right.append(0.0)
        return rows, columns, values, right

    def _times(
        self,
        parts: Parts,
        most: float,
        blocks: Sequence[tuple[int, ...]],
        starts: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Each variable's time and the time of what has no choice, as shares of the budget."""
        times = np.zeros(starts[-1])
        fixed = parts.rest
        places = {block: number for number, block in enumerate(blocks)}
        for time, groups in zip(parts.times, parts.groups, strict=True):
            block = self._block(groups)
            if not block:
                fixed += time(self.full)
                continue
            start = int(starts[places[block]])
            for n, choice in enumerate(self._choices(block)):
                counts = self.full.copy()
                counts[list(block)] = choice
                times[start + n] += time(counts)
        return times / most, fixed / most


class _Solver:
    def __init__(
        self,
        worth: Sequence[dict[int, float]],
        widths: Sequence[Widths],
        budgets: Sequence[tuple[Parts, float]],
        limits: Sequence[tuple[Callable[[Counts], int], float]],
    ) -> None:
        self.worth = worth
        self.options = [
            w.counts if len(v) > 1 else (w.full,) for v, w in zip(worth, widths, strict=True)
        ]
        self.budgets = budgets
        self.limits = limits
        self.full = np.array([w.full for w in widths], dtype=np.int64)
        self.lowest = np.array([min(some) for some in self.options], dtype=np.int64)
        # Per budget and group the parts that change with the group.
        self.parts: list[list[list[int]]] = []
        for parts, _ in budgets:
            touched: list[list[int]] = [[] for _ in widths]
            for number, groups in enumerate(parts.groups):
                for group in groups:
                    touched[group].append(number)
            self.parts.append(touched)

    def overrun(self, counts: Counts) -> float:
        """The largest cost over its budget, as a ratio."""
        ratios = [parts.total(counts) / most for parts, most in self.budgets]
        ratios += [cost(counts) / most for cost, most in self.limits]
        return max(ratios)

    def solve(self) -> Counts:
        if self.overrun(self.full) <= 1:
            return self.full.copy()
        floor = self.overrun(self.lowest)
        if floor > 1:
            raise BudgetError(self._unreachable())
        found = self.lowest.copy()
        # Prices over a wide range, then between the last that is too low and the first that fits.
        low, high = None, self._dearest()
        for _ in range(_PRICES):
            price = high / 4 if low is None else (low * high) ** 0.5
            counts = self._at(price)
            if self.overrun(counts) > 1:
                low = price
            else:
                high = price
                found = max(found, counts, key=self._value)
            if low is not None and high / low < 1 + _NEAR:
                break
        return self._spend(found)

    def _value(self, counts: Counts) -> float:
        return sum(worth[int(n)] for worth, n in zip(self.worth, counts, strict=True))

    def _dearest(self) -> float:
        """A price at which every group is at its narrowest: more than any width is worth."""
        total = sum(max(worth.values()) for worth in self.worth)
        return 4 * total if total else 1.0

    def _local(self, group: int, counts: Counts) -> float:
        """What changes with a group's width, each budget as a share of what it allows."""
        time = 0.0
        for (parts, most), touched in zip(self.budgets, self.parts, strict=True):
            time += sum(parts.times[number](counts) for number in touched[group]) / most
        for cost, most in self.limits:
            time += cost(counts) / most
        return time

    def _at(self, price: float) -> Counts:
        """The counts that a price of time gives, by turns over the groups."""
        counts = self.full.copy()
        for _ in range(_SWEEPS):
            before = counts.copy()
            for group, options in enumerate(self.options):
                if len(options) == 1:
                    continue
                scored = []
                for option in options:
                    counts[group] = option
                    gain = self.worth[group][option] - price * self._local(group, counts)
                    scored.append((gain, option))
                counts[group] = max(scored)[1]
            if (counts == before).all():
                break
        return counts

    def _spend(self, counts: Counts) -> Counts:
        """Widen while the budgets hold, what is worth most for its time first."""
        counts = counts.copy()
        while True:
            base = [self._local(group, counts) for group in range(len(counts))]
            steps: list[tuple[float, int, int]] = []
            for group, options in enumerate(self.options):
                wider = [option for option in options if option > counts[group]]
                for option in wider:
                    trial = counts.copy()
                    trial[group] = option
                    if self.overrun(trial) > 1:
                        continue
                    gain = self.worth[group][option] - self.worth[group][int(counts[group])]
                    more = max(self._local(group, trial) - base[group], 1e-12)
                    steps.append((gain / more, group, option))
            if not steps:
                return counts
            _, group, option = max(steps)
            counts[group] = option

    def _unreachable(self) -> str:
        told = []
        for parts, most in self.budgets:
            fastest = parts.total(self.lowest)
            if fastest > most:
                told.append(
                    f"with every group at its narrowest it takes {fastest:.4g}, and {most:.4g} "
                    "were asked for"
                )
        for cost, most in self.limits:
            if cost(self.lowest) > most:
                told.append(f"a limit of {most:.4g} cannot be held: {cost(self.lowest):.4g} remain")
        return "; ".join(told)
