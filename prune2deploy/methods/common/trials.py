"""Networks that are tried out, for methods that distribute a budget themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune2deploy.channels import cut
from prune2deploy.methods.base import Context, Counts, IndexTable, Scores
from prune2deploy.models import recalibrate


def value_of(
    context: Context,
    scores: Sequence[Scores | None],
    counts: Counts,
    images: int,
    batch_size: int,
) -> float:
    """How good the network with these counts is, its batch-norm statistics measured anew.

    Args:
        context: with images and judge.
        scores: per group; the highest stay. None: the group stays whole.
        images, batch_size: for the statistics.
    """
    assert context.images is not None
    assert context.judge is not None
    kept = [
        np.arange(count) if s is None else _best(s, count)
        for s, count in zip(scores, counts.tolist(), strict=True)
    ]
    small = cut(context.model, context.graph.plan(kept))
    recalibrate(small, context.images(images, batch_size), -(-images // batch_size))
    return context.judge(small.eval())


def _best(scores: Scores, count: int) -> IndexTable:
    """The channels with the highest scores, ascending; the budget picks the same ones."""
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - count :])
