"""The networks that a search begins with: a front that is no worse than what a budget gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune2deploy.budget import Widths, keep_under_cost
from prune2deploy.budget.latency import keep_under_times
from prune2deploy.budget.widths import Scores
from prune2deploy.errors import BudgetError
from prune2deploy.pipeline.search.costs import Cost
from prune2deploy.search import Space
from prune2deploy.search.space import Counts

_LEVELS = 5
_BELOW = (1.0, 0.98)
"""A budget counts as met a little above it; the second try lies below."""


def starting_points(
    space: Space, scores: Sequence[Scores | None], cost: Cost, budget: float | None
) -> dict[str, Counts]:
    """At several shares of the cost, the plan by scores and the one where all groups lose alike.

    Args:
        budget: a share that is among them in any case.

    Returns:
        By name, each network once.
    """
    inner = np.linspace(space.low, space.high, _LEVELS + 2)[1:-1].tolist()
    shares = sorted({round(share, 3) for share in [*inner, *([] if budget is None else [budget])]})
    found: dict[str, Counts] = {}
    for share in shares:
        found[f"uniform at {share:.1%}"] = space.uniform(share)
        scored = _by_scores(space, scores, share)
        if scored is not None:
            found[f"scores at {share:.1%}"] = scored
        timed = _by_time(space, scores, cost, share)
        if timed is not None:
            found[f"scores in {share:.1%} of the time"] = timed
    kept: dict[tuple[int, ...], str] = {}
    for name, counts in found.items():
        if space.holds(counts):
            kept.setdefault(tuple(counts.tolist()), name)
    return {name: found[name] for name in kept.values()}


def _widths(space: Space) -> list[Widths]:
    return [
        Widths(name, tuple(counts)) for name, counts in zip(space.names, space.allowed, strict=True)
    ]


def _by_scores(space: Space, scores: Sequence[Scores | None], share: float) -> Counts | None:
    """What a budget of this share gives, at most at it; None: it is out of reach."""
    for factor in _BELOW:
        try:
            decision = keep_under_cost(scores, _widths(space), space.size, share * factor, "cost")
        except BudgetError:
            return None
        counts = np.array([len(kept) for kept in decision.kept], dtype=np.int64)
        if space.share(counts) <= share:
            return counts
    return None


def _by_time(
    space: Space, scores: Sequence[Scores | None], cost: Cost, share: float
) -> Counts | None:
    """What a budget of this share of the time gives, by the device's table."""
    if cost.predicted is None:
        return None
    allowed = cost.predicted.original_us * share
    try:
        _, counts = keep_under_times(scores, _widths(space), [(cost.predicted.parts(), allowed)])
    except BudgetError:
        return None
    return counts
