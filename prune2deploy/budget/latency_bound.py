"""How much importance a time allows at the most, by a linear program."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prune2deploy.budget.latency import Counts, Parts, importance
from prune2deploy.budget.widths import Scores, Widths

_BOUND_VARIABLES = 20_000  # a larger linear program takes too long for what it tells
_BOUND_TIME_S = 2.0


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
