"""The `latency_ms` and `speedup` budgets: the most importance that a time allows.

Which widths to keep is a knapsack over steps in which the time of a layer depends on two groups at
once, its input's and its output's. It is solved by Lagrange's multiplier: for a price of time,
each group in turn takes the width that is best for its neighbours' present widths, until nothing
changes, once from the full widths and once from the narrowest. The price is halved in on until
the time fits, what is left over is spent greedily, and widths are exchanged between pairs of
groups as long as that brings more. How far from the best that is: latency_bound.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prune2deploy.budget.widths import Decision, Scores, Widths, best
from prune2deploy.errors import BudgetError

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

_PRICES = 40
_SWEEPS = 30
_NEAR = 1e-3  # prices that differ by less give the same widths, or nearly
_EXCHANGES = 20
_EXCHANGED_STEPS = 3


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
    limits: Sequence[tuple[Callable[[Counts], float], float]] = (),
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


class _Solver:
    def __init__(
        self,
        worth: Sequence[dict[int, float]],
        widths: Sequence[Widths],
        budgets: Sequence[tuple[Parts, float]],
        limits: Sequence[tuple[Callable[[Counts], float], float]],
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
        # Turns over the groups end where no single group should move, and one that many others
        # go with, as a residual stream does, may have to move with them: so from both ends.
        priced = [self._priced(start) for start in (self.full, self.lowest)]
        different = {counts.tobytes(): counts for counts in priced}.values()
        return max((self._exchanged(self._spend(one)) for one in different), key=self._value)

    def _priced(self, start: Counts) -> Counts:
        """The best counts within the budgets that a price of time gives, in turns from a start."""
        found = self.lowest.copy()
        # Prices over a wide range, then between the last that is too low and the first that fits.
        low, high = None, self._dearest()
        for _ in range(_PRICES):
            price = high / 4 if low is None else (low * high) ** 0.5
            counts = self._at(price, start)
            if self.overrun(counts) > 1:
                low = price
            else:
                high = price
                found = max(found, counts, key=self._value)
            if low is not None and high / low < 1 + _NEAR:
                break
        return found

    def _value(self, counts: Counts) -> float:
        return sum(worth[int(n)] for worth, n in zip(self.worth, counts, strict=True))

    def _dearest(self) -> float:
        """A price at which every group is at its narrowest: more than any width is worth."""
        total = sum(max(worth.values()) for worth in self.worth)
        return 4 * total if total else 1.0

    def _around(self, group: int, counts: Counts) -> list[float]:
        """What changes with a group's width: of each budget and limit the share of what it allows.

        A limit is one cost of all groups, so that the whole of it is given.
        """
        times = [
            sum(parts.times[number](counts) for number in touched[group]) / most
            for (parts, most), touched in zip(self.budgets, self.parts, strict=True)
        ]
        return times + [cost(counts) / most for cost, most in self.limits]

    def _local(self, group: int, counts: Counts) -> float:
        return sum(self._around(group, counts))

    def _shares(self, counts: Counts) -> Shares:
        """What each budget and limit has used up, 1 is all of it."""
        times = [parts.total(counts) / most for parts, most in self.budgets]
        return np.array(times + [cost(counts) / most for cost, most in self.limits])

    def _at(self, price: float, start: Counts) -> Counts:
        """The counts that a price of time gives, by turns over the groups."""
        counts = start.copy()
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
            shares = self._shares(counts)
            steps: list[tuple[float, int, int]] = []
            for group in range(len(counts)):
                for option, gain, more in self._wider(group, counts):
                    if (shares + more).max() <= 1:
                        steps.append((gain / max(float(more.sum()), 1e-12), group, option))
            if not steps:
                return counts
            _, group, option = max(steps)
            counts[group] = option

    def _wider(
        self, group: int, counts: Counts, count: int | None = None
    ) -> Iterator[tuple[int, float, Shares]]:
        """A group's wider widths, the nearest first: width, importance gained, shares added."""
        now = int(counts[group])
        options = sorted(option for option in self.options[group] if option > now)[:count]
        if not options:
            return
        before = np.array(self._around(group, counts))
        trial = counts.copy()
        for option in options:
            trial[group] = option
            gain = self.worth[group][option] - self.worth[group][now]
            yield option, gain, np.array(self._around(group, trial)) - before

    def _exchanged(self, counts: Counts) -> Counts:
        """Narrow one group where what another gains for that is worth more, until nothing is."""
        for _ in range(_EXCHANGES):
            move = self._best_exchange(counts)
            if move is None:
                break
            counts = counts.copy()
            for group, option in move:
                counts[group] = option
            counts = self._spend(counts)
        return counts

    def _best_exchange(self, counts: Counts) -> list[tuple[int, int]] | None:
        shares = self._shares(counts)
        most, found = 1e-9, None
        for group, options in enumerate(self.options):
            now = int(counts[group])
            narrower = [option for option in options if option < now]
            if not narrower:
                continue
            less = counts.copy()
            less[group] = max(narrower)
            loss = self.worth[group][now] - self.worth[group][max(narrower)]
            saved = np.array(self._around(group, less)) - np.array(self._around(group, counts))
            for other in range(len(counts)):
                if other == group:
                    continue
                for option, gain, more in self._wider(other, less, _EXCHANGED_STEPS):
                    if gain - loss > most and (shares + saved + more).max() <= 1:
                        most, found = gain - loss, [(group, max(narrower)), (other, option)]
        return found

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
