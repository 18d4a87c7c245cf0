"""How much importance a time allows at the most, by Lagrange's dual.

For a price of time, the widths of most importance less price are found exactly: a part depends on
few groups, and whatever the neighbours of a group choose, its own best width for that is known
(variable elimination; Bertelè and Brioschi, Nonserial Dynamic Programming, 1972). What they are
worth bounds what any widths within the budgets are worth, and the prices that bound it best come
from a small linear program over the widths found so far (column generation, which is Kelley's
cutting planes seen from the other side).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from prune2deploy.budget.latency import Counts, Parts, importance
from prune2deploy.budget.widths import Scores, Widths

Table = npt.NDArray[np.float64]
Tables = Mapping[tuple[int, ...], Table]
"""By the groups that a table depends on: its values, an axis per group, a place per width."""

_MOST_ENTRIES = 4_000_000  # of one table; groups that are joined more densely have no bound
_ROUNDS = 60
_CLOSE = 1e-5  # the bound and what a mixture of widths reaches, as a share of all importance


def upper_bound(
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    budgets: Sequence[tuple[Parts, float]],
) -> float | None:
    """No widths within the budgets keep more than this share of the importance, 0 to 1.

    None: groups are joined too densely for this, or the narrowest widths are over a budget.
    """
    worth = [importance(s, w) for s, w in zip(scores, widths, strict=True)]
    most = sum(max(values.values()) for values in worth)
    if not most:
        return 1.0
    gains: dict[tuple[int, ...], Table] = {
        (group,): np.array([values[count] for count in values]) / most
        for group, values in enumerate(worth)
    }
    options = [tuple(values) for values in worth]
    scopes = [[_free(groups, options) for groups in parts.groups] for parts, _ in budgets]
    order = _order(options, {groups for some in scopes for groups in some})
    if order is None:
        return None
    full = np.array([w.full for w in widths], dtype=np.int64)
    costs = [
        _cost(parts, allowed, some, options, full)
        for (parts, allowed), some in zip(budgets, scopes, strict=True)
    ]
    return _dual(gains, costs, order)


@dataclass(frozen=True)
class _Cost:
    """A time as a share of its budget. fixed: what does not depend on any choice."""

    tables: Tables
    fixed: float

    def at(self, places: Sequence[int]) -> float:
        return self.fixed + _value(self.tables, places)


def _value(tables: Tables, places: Sequence[int]) -> float:
    return sum(float(one[tuple(places[g] for g in groups)]) for groups, one in tables.items())


def _free(groups: Sequence[int], options: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The groups of a part that have a choice."""
    return tuple(sorted({group for group in groups if len(options[group]) > 1}))


def _cost(
    parts: Parts,
    allowed: float,
    scopes: Sequence[tuple[int, ...]],
    options: Sequence[tuple[int, ...]],
    full: Counts,
) -> _Cost:
    """A time as tables. scopes: per part the groups with a choice."""
    tables: dict[tuple[int, ...], Table] = {}
    fixed = parts.rest
    for time, groups in zip(parts.times, scopes, strict=True):
        if not groups:
            fixed += time(full)
            continue
        counts = full.copy()
        table = np.empty([len(options[group]) for group in groups])
        for place in product(*(range(size) for size in table.shape)):
            counts[list(groups)] = [options[g][n] for g, n in zip(groups, place, strict=True)]
            table[place] = time(counts) / allowed
        tables[groups] = tables.get(groups, 0.0) + table
    return _Cost(tables, fixed / allowed)


def _order(
    options: Sequence[tuple[int, ...]], scopes: Collection[tuple[int, ...]]
) -> list[int] | None:
    """In which groups are done away with: first the one whose table with its neighbours is small.

    None: that table is too large even so.
    """
    joined: dict[int, set[int]] = {group: set() for group in range(len(options))}
    for groups in scopes:
        for group in groups:
            joined[group] |= set(groups) - {group}
    order = []
    while joined:
        entries = {
            group: math.prod(len(options[one]) for one in (group, *around))
            for group, around in joined.items()
        }
        group = min(entries, key=entries.__getitem__)
        if entries[group] > _MOST_ENTRIES:
            return None
        around = joined.pop(group)
        for one in around:
            joined[one] = (joined[one] | around) - {one, group}
        order.append(group)
    return order


def _best_places(tables: Tables, order: Sequence[int]) -> list[int]:
    """The places of the largest sum of all tables."""
    left = dict(tables)
    answers: list[tuple[int, tuple[int, ...], npt.NDArray[np.intp]]] = []
    for group in order:
        mine = {groups: left.pop(groups) for groups in list(left) if group in groups}
        around = tuple(sorted({other for groups in mine for other in groups} - {group}))
        axes = (*around, group)
        total = sum(_spread(table, groups, axes) for groups, table in mine.items())
        answers.append((group, around, np.argmax(total, axis=-1)))
        rest = np.max(total, axis=-1)
        left[around] = left[around] + rest if around in left else rest
    places = [0] * len(order)
    for group, around, answer in reversed(answers):
        places[group] = int(answer[tuple(places[other] for other in around)])
    return places


def _spread(table: Table, groups: Sequence[int], axes: Sequence[int]) -> Table:
    """A table with an axis for each of `axes`, of length 1 where it does not depend on it.

    groups: in ascending order, as `axes` are but for the last.
    """
    moved = np.moveaxis(table, groups.index(axes[-1]), -1)
    kept = [*(g for g in groups if g != axes[-1]), axes[-1]]
    return moved.reshape([moved.shape[kept.index(axis)] if axis in kept else 1 for axis in axes])


def _dual(gains: Tables, costs: Sequence[_Cost], order: Sequence[int]) -> float | None:
    """The lowest bound that prices give."""
    narrowest = [0] * len(gains)
    for (group,), table in gains.items():
        narrowest[group] = len(table) - 1
    if max(cost.at(narrowest) for cost in costs) > 1:
        return None
    found: list[list[int]] = []
    values: list[float] = []
    shares: list[list[float]] = [[] for _ in costs]

    def take_up(places: list[int]) -> None:
        found.append(places)
        values.append(_value(gains, places))
        for cost, some in zip(costs, shares, strict=True):
            some.append(cost.at(places))

    take_up(narrowest)
    take_up([0] * len(gains))
    bound = 1.0
    for _ in range(_ROUNDS):
        value, prices = _mixture(values, shares)
        priced = dict(gains)
        for price, cost in zip(prices, costs, strict=True):
            for groups, table in cost.tables.items():
                priced[groups] = priced.get(groups, 0.0) - price * table
        places = _best_places(priced, order)
        fixed = sum(price * (1 - cost.fixed) for price, cost in zip(prices, costs, strict=True))
        bound = min(bound, _value(priced, places) + fixed)
        if bound - value < _CLOSE or places in found:
            break
        take_up(places)
    return bound


def _mixture(
    values: Sequence[float], shares: Sequence[Sequence[float]]
) -> tuple[float, list[float]]:
    """The most that a mixture of widths is worth within the budgets, and the price of each."""
    from scipy.optimize import linprog

    answer = linprog(
        -np.array(values),
        A_ub=np.array(shares),
        b_ub=np.ones(len(shares)),
        A_eq=np.ones((1, len(values))),
        b_eq=[1.0],
        method="highs",
    )
    assert answer.fun is not None  # the narrowest widths are within the budgets
    return -float(answer.fun), [max(0.0, -float(price)) for price in answer.ineqlin.marginals]
