"""EagleEye: many pruned networks are tried out, after their batch norms are measured anew.

Paper: Li, Wu, Su, Wang, Lin, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
Pruning", ECCV 2020, https://arxiv.org/abs/2007.02491.

A candidate says which share of each group goes: r_g = min(max_rate, t u_g) with u_g drawn
uniformly from 0 to 1. Within a group the filters with the smallest L1 norms go. Candidates
that cost more than the target, or less by more than the tolerance, are never built. Of every
other one the network is cut, its batch-norm statistics are measured anew on training images,
and it is tried on images that are not for testing, without any training; the best wins. As
those statistics are what a cut damages most, this foretells which will be best after training.

Only the budgets macs and params leave something to choose: with the budget channels every
group keeps the share that it says, by the L1 norms, and nothing is tried.

Defaults: 50 candidates (1000 in the paper as far as we know) on 20 batches; a group loses at
most 0.8 of its channels (the paper: 0.4 to 0.8, by the target). Differs from the paper: the
common factor t is found for each draw so that the cost meets the target, where the paper takes
t = max_rate and draws until it does, which for many groups can take forever; batches are
averaged with equal weights, which needs fewer of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from prune2deploy import progress
from prune2deploy.errors import MethodError
from prune2deploy.methods import l1
from prune2deploy.methods.base import Allocation, Context, Counts, Method, MethodOptions, Scores
from prune2deploy.methods.common.readings import filters, require_some
from prune2deploy.methods.common.trials import value_of

log = logging.getLogger(__name__)

DRAWS = 40
"""Draws per candidate that is wanted, before the search for candidates is given up."""
_HALVINGS = 20


def counts_of(shares: Sequence[float], allowed: Sequence[Sequence[int]]) -> Counts:
    """Return the allowed count of each group that is nearest to what its share leaves.

    Args:
        shares: of each group's channels that go. allowed: counts of each group, descending.
    """
    nearest = []
    for share, counts in zip(shares, allowed, strict=True):
        distances = np.abs(np.array(counts) - (1 - share) * counts[0])
        nearest.append(counts[int(distances.argmin())])
    return np.array(nearest, dtype=np.int64)


def scaled(
    draw: Sequence[float], allowed: Sequence[Sequence[int]], choice: Allocation, max_rate: float
) -> Counts:
    """Return the widest network min(max_rate, t * draw) that costs no more than the target.

    Args:
        draw: a number from 0 to 1 for each group.
        allowed: counts that each group may have, descending.

    Returns:
        Counts per group; of the narrowest network if even that one costs more.
    """

    def counts(t: float) -> Counts:
        return counts_of([min(max_rate, t * u) for u in draw], allowed)

    low, high = 0.0, max_rate / max(min(draw), 1e-3)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if choice.cost(counts(middle)) > choice.target:
            low = middle
        else:
            high = middle
    return counts(high)


def candidates(
    wanted: int,
    allowed: Sequence[Sequence[int]],
    choice: Allocation,
    max_rate: float,
    tolerance: float,
) -> list[Counts]:
    """Draw different networks that cost what they may, the same ones every time.

    Args:
        wanted: how many at most; small networks have fewer.
        tolerance: how far the cost may lie below the target, as a share of the original's.

    Raises:
        MethodError: not a single one was found.
    """
    random = np.random.default_rng(0)
    found: dict[tuple[int, ...], Counts] = {}
    nearest = math.inf
    for _ in range(DRAWS * wanted):
        counts = scaled(random.random(len(allowed)).tolist(), allowed, choice, max_rate)
        below = (choice.target - choice.cost(counts)) / choice.full
        if 0 <= below <= tolerance:
            found.setdefault(tuple(counts.tolist()), counts)
            if len(found) == wanted:
                break
        nearest = min(nearest, below, key=lambda d: abs(d))
    if not found:
        target = choice.target / choice.full
        raise MethodError(
            f"eagleeye drew {DRAWS * wanted} networks, and none costs between "
            f"{target - tolerance:.3f} and {target:.3f} of the original; the nearest costs "
            f"{target - nearest:.3f}. Raise max_rate if that is more, tolerance if it is less, or "
            "lower round_to for finer steps."
        )
    return list(found.values())


class EagleeyeOptions(MethodOptions):
    """Options of EagleEye."""

    candidates: int = Field(50, ge=1, description="Networks that are tried out.")
    images: int = Field(
        1280, ge=2, description="Training images that renew each network's batch-norm statistics."
    )
    batch_size: int = Field(64, ge=2, description="Images per batch while they are renewed.")
    max_rate: float = Field(
        0.8, gt=0, lt=1, description="Largest share of its channels that a group may lose."
    )
    tolerance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="How far below the budget a network may lie, as a share of the original.",
    )


class Eagleeye(Method[EagleeyeOptions]):
    """L1 norm within a group; how much each group keeps is tried out."""

    name = "eagleeye"
    summary = "sum of a filter's absolute weights; the best of many random networks wins"
    source = (
        "Li, Wu, Su, Wang, Lin: EagleEye: Fast Sub-net Evaluation for Efficient Neural Network "
        "Pruning, ECCV 2020, https://arxiv.org/abs/2007.02491"
    )
    cost = "minutes"
    options = EagleeyeOptions
    needs_data = True
    needs_judge = True

    def score(self, context: Context) -> list[Tensor | None]:
        """Add up the L1 norms over the layers that produce a group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = [l1.score(w) for w in filters(context, group)]
            scores.append(sum(parts[1:], start=parts[0]) if parts else None)
        return require_some(scores, self.name, "no layer with weights produces them")

    def allocate(
        self, context: Context, scores: Sequence[Scores | None], choice: Allocation
    ) -> Counts | None:
        """Try networks that meet the budget, and return the counts of the best."""
        if context.images is None or context.judge is None:
            raise MethodError(
                "eagleeye tries networks out and needs training images and a judge. In Python "
                "pass plan(..., images=batches, judge=...), a function of a model that returns "
                "how good it is; a recipe does it by itself."
            )
        if choice.cost(np.array([counts[0] for counts in choice.allowed])) <= choice.target:
            return None
        settings = self.settings
        allowed = [
            counts if s is not None else counts[:1]
            for counts, s in zip(choice.allowed, scores, strict=True)
        ]
        drawn = candidates(
            settings.candidates, allowed, choice, settings.max_rate, settings.tolerance
        )
        best, value = None, -math.inf
        with progress.task("Trying networks", total=len(drawn)) as shown:
            for counts in drawn:
                found = value_of(context, scores, counts, settings.images, settings.batch_size)
                if found > value:
                    best, value = counts, found
                shown.advance(1, f"best {value:.4g}")
        if best is None:
            raise MethodError(
                f"eagleeye tried {len(drawn)} networks, and the judge gave none of them a number. "
                "Check the checkpoint, and that the images are normalised as in training."
            )
        log.info("The best of %d networks reaches %.4g before training", len(drawn), value)
        return best


METHOD = Eagleeye
