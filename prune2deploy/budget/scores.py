"""Make the scores of different groups comparable."""

from __future__ import annotations

from typing import Literal

import numpy as np

from prune2deploy.budget.widths import Scores


def comparable(scores: Scores, how: Literal["none", "mean", "max", "l2", "rank"]) -> Scores:
    """Return one group's scores, scaled.

    mean, max, l2: divided by the group's mean, largest value or root mean square;
    rank: replaced by their rank in (0, 1]; none: as they are. A group of zeros stays.
    """
    if how == "none":
        return scores
    if how == "rank":
        order = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
        return (order + 1) / len(scores)
    scale = {
        "mean": np.mean(np.abs(scores)),
        "max": np.max(np.abs(scores)),
        "l2": np.sqrt(np.mean(np.square(scores))),
    }[how]
    return scores / scale if scale > 0 else scores
