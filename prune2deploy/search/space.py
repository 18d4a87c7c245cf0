"""Networks as the numbers that a sampler proposes: a cost, and how each group shares in the cut.

One number per group alone would make a poor space. The cost of a network whose groups are drawn
independently lies close to its mean, the closer the more groups there are, so of fifty groups
hardly a draw would be near the budget; and whether a layer can go far depends on how far the others
went. So the share of the cost is a number of its own, and those of the groups only say how much
each loses beside the others: removal min(1, t * u), where t is found for the cost, as candidates of
EagleEye are drawn (Li et al., ECCV 2020, https://arxiv.org/abs/2007.02491; the common factor is
ours). What is learned about a group at one cost then holds at another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

SHARE = "share of the cost"
_HALVINGS = 40


@dataclass(frozen=True)
class Space:
    """The networks that may be tried.

    names: of the groups. allowed: counts that each may keep, descending, the full one first.
    size: cost of counts; it falls when counts fall. low, high: shares of the full cost between
    which networks are tried.
    """

    names: Sequence[str]
    allowed: Sequence[Sequence[int]]
    size: Callable[[Counts], int]
    low: float
    high: float

    @cached_property
    def full(self) -> Counts:
        """All channels of every group."""
        return np.array([counts[0] for counts in self.allowed], dtype=np.int64)

    @cached_property
    def free(self) -> list[int]:
        """Groups that have a choice."""
        return [n for n, counts in enumerate(self.allowed) if len(counts) > 1]

    @property
    def networks(self) -> int:
        """How many there are at any cost."""
        return math.prod(len(counts) for counts in self.allowed)

    def share(self, counts: Counts) -> float:
        """The part of the full cost that is left."""
        return self.size(counts) / self.size(self.full)

    def holds(self, counts: Counts) -> bool:
        """Whether a network costs what it may."""
        return self.low <= self.share(counts) <= self.high

    def parameters(self) -> list[str]:
        """Names of a sampler's numbers; SHARE is between low and high, the others from 0 to 1."""
        return [SHARE, *(f"group {self.names[n]}" for n in self.free)]

    def numbers_of(self, counts: Counts) -> dict[str, float]:
        """The numbers that lead to these counts."""
        gone = 1 - counts / self.full
        largest = float(gone.max(initial=0.0)) or 1.0
        # Half a unit more, so that rounding does not ask for less than the network costs.
        share = (self.size(counts) + 0.5) / self.size(self.full)
        numbers = [min(max(share, self.low), self.high), *(gone[self.free] / largest).tolist()]
        return dict(zip(self.parameters(), numbers, strict=True))

    def counts_of(self, numbers: Mapping[str, float]) -> Counts:
        """The widest network that the numbers allow.

        It costs at most their share, or is the narrowest they lead to if even that costs more.
        """
        share, *weights = (numbers[name] for name in self.parameters())
        target = share * self.size(self.full)
        low, high = 0.0, 1 / max(min((u for u in weights if u > 0), default=1.0), 1e-3)
        if self.size(self._scaled(weights, low)) <= target:
            return self.full.copy()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.size(self._scaled(weights, middle)) > target:
                low = middle
            else:
                high = middle
        return self._scaled(weights, high)

    def _scaled(self, weights: Sequence[float], factor: float) -> Counts:
        counts = self.full.copy()
        for number, weight in zip(self.free, weights, strict=True):
            wanted = (1 - min(1.0, factor * weight)) * counts[number]
            allowed = np.asarray(self.allowed[number])
            counts[number] = allowed[np.abs(allowed - wanted).argmin()]
        return counts

    def uniform(self, share: float) -> Counts:
        """The network of this share of the cost whose groups all lose alike."""
        numbers = dict.fromkeys(self.parameters(), 1.0)
        return self.counts_of({**numbers, SHARE: share})

    def neighbour(self, counts: Counts, random: np.random.Generator) -> Counts:
        """Another network, of which one or two groups have the next width up or down."""
        moved = counts.copy()
        some = random.choice(self.free, size=int(random.integers(1, 3)))
        for number in set(some.tolist()):
            allowed = list(self.allowed[number])
            place = allowed.index(int(moved[number])) + int(random.choice((-1, 1)))
            moved[number] = allowed[min(max(place, 0), len(allowed) - 1)]
        return moved
