"""Percentiles of latency samples and paired speed-ups, each with a 95 % interval.

Neighbouring samples are alike: what disturbs one run disturbs the next. So single samples are
never taken for independent here. A percentile's interval counts how much its *blocks* disagree; a
speed-up's counts how much the blocks' ratios do.

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
from typing import TYPE_CHECKING

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


def trimmed_mean(values: Floats) -> float:
    """Mean without the lowest and the highest fifth; values: shape (n,)."""
    import numpy as np

    ordered = np.sort(values)
    cut = int(TRIMMED * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())


def trimmed_mean_error(values: Floats) -> tuple[float, int]:
    """Return a trimmed mean's standard error and the degrees of freedom of Student's t for it.

    values: in the order they were taken, shape (n,). The error is that of Tukey and McLaughlin
    ("Less vulnerable confidence and significance procedures for location", Sankhya A 25, 1963),
    from the winsorised variance, times what likeness of neighbours adds: the factor of an
    autoregressive series of first order. Its estimate is too low for few values, so that it makes
    up for most of the likeness and not all of it.
    """
    import numpy as np

    ordered = np.sort(values)
    cut = int(TRIMMED * len(ordered))
    kept = len(ordered) - 2 * cut
    winsorised = np.clip(values, ordered[cut], ordered[-cut - 1])
    deviations = winsorised - winsorised.mean()
    squares = float(np.sum(deviations**2))
    if squares == 0:
        return 0.0, kept - 1
    likeness = min(max(float(np.sum(deviations[1:] * deviations[:-1])) / squares, 0.0), 0.9)
    variance = squares / (kept * (kept - 1)) * (1 + likeness) / (1 - likeness)
    return math.sqrt(variance), kept - 1


def paired_ratio(baseline: Floats, other: Floats) -> Ratio:
    """Return baseline / other from paired blocks: over 1 where `other` is faster.

    The figure is the trimmed mean of the blocks' log ratios, so that it is 1 / x the other way
    round, and a few disturbed blocks do not decide; the interval is Student's t for it. A
    bootstrap over blocks covered 93 to 95 % for 10 to 60 blocks where this covers 94 to 96 %, and
    85 % where this covers 91 to 93 %, on neighbours with a correlation of 0.3.

    Args:
        baseline, other: one typical latency per block, same unit, in the order they were taken,
            shape (blocks,), > 0.
    """
    import numpy as np
    from scipy.stats import t

    if len(baseline) != len(other) or len(baseline) < MIN_BLOCKS:
        raise ValueError(f"need {MIN_BLOCKS} pairs, got {len(baseline)} and {len(other)} blocks")
    logs = np.log(baseline) - np.log(other)
    middle = trimmed_mean(logs)
    error, freedom = trimmed_mean_error(logs)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    return Ratio(math.exp(middle), low, high, len(logs))
