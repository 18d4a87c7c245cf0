"""The `macs` and `params` budgets: remove the lowest scores until the cost fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prune2deploy.budget.widths import Decision, Scores, Widths, best
from prune2deploy.errors import BudgetError

TOLERANCE = 0.02
"""A result this close to the target, relative to the target, has met it."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Step:
    """Narrow group `group` to `count` channels, the next allowed width down."""

    score: float
    group: int
    count: int


def keep_under_cost(
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    cost: Callable[[Counts], int],
    share: float,
    unit: str,
    *,
    original: int | None = None,
) -> Decision:
    """Remove the channels with the lowest scores until the cost is `share` of the original's.

    Channels go in steps from one allowed width to the next; a step's score is the mean of
    the scores it removes. Steps are taken in ascending order, a group's own in their order.
    A step that would overshoot by more than the tolerance is passed over for smaller ones.

    Args:
        scores: per group shape (size,), comparable between groups, higher means keep;
            None: the group stays whole.
        cost: total cost from kept counts per group; falls when counts fall.
        share: target as a share of the original's cost, in (0, 1).
        unit: what is counted, for messages: "MACs".
        original: the original's cost, where earlier cuts made the full counts smaller;
            None: that of the full counts.

    Raises:
        BudgetError: even with everything removed that may be, the cost stays above the
            target by more than the tolerance.
    """
    full = np.array([w.full for w in widths], dtype=np.int64)
    total = cost(full) if original is None else original
    target = share * total
    if cost(full) <= target:
        return Decision(tuple(np.arange(w.full) for w in widths))
    steps = _ordered_steps(scores, widths)
    _check_reachable(steps, full, widths, cost, total, share, unit)

    counts_after = _prefixes(full, steps)
    # The cost falls with every step, so the first that reaches the target is found by halving.
    reached = bisect_left(
        range(len(steps) + 1), True, key=lambda n: cost(counts_after(n)) <= target
    )
    overshot = counts_after(reached)
    counts = overshot
    if cost(overshot) < target * (1 - TOLERANCE):
        counts = _fill(counts_after(reached - 1), steps[reached - 1 :], cost, target)
        if abs(cost(counts) - target) > TOLERANCE * target:
            counts = min(overshot, counts, key=lambda c: abs(cost(c) - target))
    notes = []
    found = cost(counts) / total
    if abs(found - share) > TOLERANCE * share:
        notes.append(
            f"{found:.1%} of the {unit} are kept where {share:.1%} were asked for: no allowed "
            "widths come closer. A smaller round_to gives finer steps."
        )
    kept = tuple(
        best(s, int(n)) if s is not None else np.arange(int(n))
        for s, n in zip(scores, counts, strict=True)
    )
    return Decision(kept, tuple(notes))


def _ordered_steps(scores: Sequence[Scores | None], widths: Sequence[Widths]) -> list[_Step]:
    steps: list[_Step] = []
    for number, (score, width) in enumerate(zip(scores, widths, strict=True)):
        if score is None:
            continue
        ascending = np.sort(score, kind="stable")
        before = width.full
        previous = -np.inf
        for count in width.counts[1:]:
            mean = float(ascending[width.full - before : width.full - count].mean())
            # Rounding must not let a group's second step sort before its first.
            previous = max(previous, mean)
            steps.append(_Step(previous, number, count))
            before = count
    return sorted(steps, key=lambda s: s.score)


def _prefixes(full: Counts, steps: Sequence[_Step]) -> Callable[[int], Counts]:
    """counts(n): what is kept per group after the first n steps."""

    def counts(n: int) -> Counts:
        result = full.copy()
        for step in steps[:n]:
            result[step.group] = step.count
        return result

    return counts


def _fill(
    counts: Counts, steps: Sequence[_Step], cost: Callable[[Counts], int], target: float
) -> Counts:
    """Go on from just above the target with those steps that do not overshoot it."""
    counts = counts.copy()
    closed: set[int] = set()
    for step in steps:
        if step.group in closed:
            continue
        trial = counts.copy()
        trial[step.group] = step.count
        reached = cost(trial)
        if reached < target * (1 - TOLERANCE):
            closed.add(step.group)
            continue
        counts = trial
        if reached <= target:
            break
    return counts


def _check_reachable(
    steps: Sequence[_Step],
    full: Counts,
    widths: Sequence[Widths],
    cost: Callable[[Counts], int],
    total: int,
    share: float,
    unit: str,
) -> None:
    lowest = full.copy()
    for step in steps:
        lowest[step.group] = min(lowest[step.group], step.count)
    floor = cost(lowest) / total
    if floor > share * (1 + TOLERANCE):
        fixed = [w.name for w, low in zip(widths, lowest, strict=True) if low == w.full]
        named = ", ".join(fixed[:5]) + (", …" if len(fixed) > 5 else "")
        raise BudgetError(
            f"The budget keeps {share:.1%} of the {unit}, but with all channels removed that may "
            f"be, {floor:.1%} are left ({len(steps)} steps over {len(widths)} groups"
            + (f"; {len(fixed)} groups have no narrower width: {named}" if fixed else "")
            + "). Ask for a larger share, or lower round_to or min_channels, or exclude less."
        )
