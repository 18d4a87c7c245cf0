"""Percentiles of latency samples and paired speed-ups, each with a 95 % interval.

Neighbouring samples are alike: what disturbs one run disturbs the next. So samples are never
resampled one by one here. A percentile's interval counts how much its *blocks* disagree; a
speed-up is resampled block by block.

A percentile's interval is between two order statistics, found from the binomial distribution, so
it supposes nothing about the shape of the samples' distribution. The number of independent
samples in it is reduced as surveys do for clustered samples: Korn and Graubard, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey
data", Survey Methodology 24, 1998; turned into an interval of a quantile as in Woodruff,
"Confidence intervals for medians and other position measures", JASA 47, 1952.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CONFIDENCE = 0.95
# Blocks next to each other are alike too: a few long batches see that, many short ones do not.
MAX_BATCHES = 10
MIN_BLOCKS = 10
TRIMMED = 0.2


@dataclass(frozen=True)
class Percentile:
    """A percentile in the samples' unit; `interval` is None where the samples cannot bound it."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Ratio:
    """How many times one is the other, with a 95 % interval from `blocks` paired blocks."""

    value: float
    low: float
    high: float
    blocks: int


@cache
def samples_needed(percentile: float, discarded: int = 1, confidence: float = 0.99) -> int:
    """Return how many independent samples a percentile needs before it may be reported.

    This is the early-stopping rule of MLPerf Inference: with that many samples, the largest one
    left after discarding the `discarded` - 1 slowest is with this confidence no smaller than the
    true percentile. percentile is a share in (0, 1).
    """
    from scipy.stats import binom

    slower = 1 - percentile
    # Far too many by the normal approximation; the probability falls as the count grows.
    low, high = discarded, math.ceil((discarded + 10) * 10 / slower)
    while low < high:
        count = (low + high) // 2
        if binom.cdf(discarded, count, slower) <= 1 - confidence:
            high = count
        else:
            low = count + 1
    return low


def effective_samples(blocks: Sequence[Floats], percentile: float) -> float:
    """Return how many independent samples would tell as much about this percentile.

    blocks: samples in the order they were taken, shape (n_i,) each. It is an estimate from a few
    batches, so that independent samples come out above their number at times; cutting that off
    would make the intervals cover more than they say.
    """
    import numpy as np
    from scipy.stats import norm, t

    pooled = np.concatenate(blocks)
    batches = [np.concatenate(part) for part in _batches(blocks)]
    total, count = len(pooled), len(batches)
    # The share below the percentile, as a survey's ratio estimate over the batches. A sample
    # equal to it counts half, or many equal samples would look like certainty.
    edge = np.quantile(pooled, percentile)
    sizes = np.array([len(batch) for batch in batches])
    below = np.array([(np.mean(batch < edge) + np.mean(batch <= edge)) / 2 for batch in batches])
    below *= sizes
    share = below.sum() / total
    residuals = below - share * sizes
    variance = count / (count - 1) * float(np.sum(residuals**2)) / total**2
    if variance == 0:
        return float(total)  # the batches agree exactly, as when all samples are equal
    tail = (1 + CONFIDENCE) / 2
    # Few batches know their own spread badly; Student's t makes up for that.
    unsure = (t.ppf(tail, count - 1) / norm.ppf(tail)) ** 2
    return float(share * (1 - share) / variance / unsure)


def _batches(blocks: Sequence[Floats]) -> list[Sequence[Floats]]:
    count = min(len(blocks), MAX_BATCHES)
    edges = [round(i * len(blocks) / count) for i in range(count + 1)]
    return [blocks[start:end] for start, end in pairwise(edges)]


def percentile_of(blocks: Sequence[Floats], percentile: float) -> Percentile:
    """Return a percentile (a share in (0, 1)) of all samples, with its 95 % interval.

    blocks: samples in the order they were taken, shape (n_i,) each; at least `MIN_BLOCKS`.
    """
    import numpy as np
    from scipy.stats import binom

    if len(blocks) < MIN_BLOCKS:
        raise ValueError(f"an interval needs {MIN_BLOCKS} blocks, got {len(blocks)}")
    ordered = np.sort(np.concatenate(blocks))
    value = float(np.quantile(ordered, percentile))
    independent = math.floor(effective_samples(blocks, percentile))
    # Ranks are counted from 1; 0 and independent + 1 would lie beyond the samples.
    tail = (1 - CONFIDENCE) / 2
    low = int(binom.ppf(tail, independent, percentile))
    high = int(binom.ppf(1 - tail, independent, percentile)) + 1
    if low < 1 or high > independent:
        return Percentile(value, None)
    scale = len(ordered) / independent
    first = max(math.floor(low * scale), 1)
    last = min(math.ceil(high * scale), len(ordered))
    return Percentile(value, (float(ordered[first - 1]), float(ordered[last - 1])))


def trimmed_mean(values: Floats) -> Any:
    """Mean along the last axis without the lowest and the highest fifth."""
    import numpy as np

    ordered = np.sort(values, axis=-1)
    cut = int(TRIMMED * ordered.shape[-1])
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def paired_ratio(baseline: Floats, other: Floats, *, seed: int, resamples: int = 2000) -> Ratio:
    """Return baseline / other from paired blocks: over 1 where `other` is faster.

    The figure is the trimmed mean of the blocks' log ratios, so that it is 1 / x the other way
    round, and a few disturbed blocks do not decide; the interval is a percentile bootstrap over
    blocks.

    Args:
        baseline, other: one typical latency per block, same unit, shape (blocks,), > 0.
        seed: of the resampling; the same seed gives the same interval.
    """
    import numpy as np

    if len(baseline) != len(other) or len(baseline) < MIN_BLOCKS:
        raise ValueError(f"need {MIN_BLOCKS} pairs, got {len(baseline)} and {len(other)} blocks")
    logs = np.log(baseline) - np.log(other)
    picks = np.random.default_rng(seed).integers(0, len(logs), (resamples, len(logs)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.quantile(trimmed_mean(logs[picks]), [tail, 1 - tail]))
    return Ratio(float(np.exp(trimmed_mean(logs))), float(low), float(high), len(logs))
