"""Which widths a group may have, and the decision that a budget returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Widths:
    """The channel counts that one group may keep.

    name: for messages. counts: descending; the first is the full count.
    """

    name: str
    counts: tuple[int, ...]

    @property
    def full(self) -> int:
        """All channels of the group."""
        return self.counts[0]


@dataclass(frozen=True)
class Decision:
    """Kept channels per group (ascending indices into the group), and what to tell the user."""

    kept: tuple[Indices, ...]
    notes: tuple[str, ...] = ()


def allowed_counts(steps: Sequence[int], min_channels: int | None) -> tuple[int, ...]:
    """Those of `steps` (descending, the full count first) that keep enough channels.

    min_channels: floor; None means a tenth of the channels, at least one.
    """
    full = steps[0]
    floor = max(1, math.ceil(full / 10)) if min_channels is None else min(min_channels, full)
    return (full, *(k for k in steps[1:] if k >= floor))


def best(scores: Scores, count: int) -> Indices:
    """Indices of the `count` highest scores, ascending; of equals the lower index goes first."""
    order = np.argsort(scores, kind="stable")
    return np.sort(order[len(scores) - count :])
