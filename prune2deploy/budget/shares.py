"""The `channels` budget: a share of each group's channels is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prune2deploy.budget.cost import TOLERANCE
from prune2deploy.budget.widths import Decision, Scores, Widths, best


def keep_count(channels: int, share: float) -> int:
    """Channels to keep of `channels` when `share` of them should stay: at least one.

    The number removed is rounded down; a margin absorbs the rounding of 1 - share.
    """
    return max(1, channels - math.floor(channels * (1 - share) + 1e-9))


def keep_shares(
    scores: Sequence[Scores | None], widths: Sequence[Widths], shares: Sequence[float | None]
) -> Decision:
    """Keep the best channels of each group.

    Args:
        scores: per group shape (size,), higher means keep; None: the group stays whole.
        shares: per group the share to keep in (0, 1]; None: the group stays whole.

    Returns:
        Counts are rounded up to the next allowed width; notes say where that matters.
    """
    kept = []
    stuck = []
    total = asked = found = 0.0
    for score, width, share in zip(scores, widths, shares, strict=True):
        count = width.full
        if score is not None and share is not None:
            wanted = keep_count(width.full, share)
            count = min(k for k in width.counts if k >= wanted)
            if count == width.full > wanted:
                stuck.append(f"{width.name} ({width.full})")
            total, asked, found = total + width.full, asked + width.full * share, found + count
        kept.append(best(score, count) if score is not None else np.arange(width.full))
    notes = []
    if stuck:
        notes.append(f"No allowed width below the full one for: {', '.join(stuck)}.")
    if abs(found - asked) > TOLERANCE * asked:
        notes.append(
            f"{found / total:.1%} of the channels are kept where {asked / total:.1%} were asked "
            "for: widths are rounded up. A smaller round_to or min_channels comes closer."
        )
    return Decision(tuple(kept), tuple(notes))
