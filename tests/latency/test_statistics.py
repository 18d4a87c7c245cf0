from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, norm

from prune2deploy.latency import statistics
from prune2deploy.latency.statistics import paired_ratio, percentile_of, samples_needed

Blocks = list[np.ndarray]
SIGMA = 0.3


@pytest.mark.parametrize(
    ("percentile", "discarded", "needed"),
    [
        # MLPerf Inference, early stopping; 662 is its official minimum for the 99th.
        (0.50, 1, 11),
        (0.50, 10, 35),
        (0.90, 1, 64),
        (0.90, 2, 81),
        (0.95, 1, 130),
        (0.95, 5, 259),
        (0.99, 1, 662),
        (0.99, 2, 838),
        (0.99, 10, 2010),
        (0.999, 1, 6636),
        (0.999, 10, 20140),
    ],
)
def test_samples_needed_are_those_of_mlperf(percentile: float, discarded: int, needed: int) -> None:
    assert samples_needed(percentile, discarded) == needed


def independent(rng: np.random.Generator) -> Blocks:
    return list(np.exp(SIGMA * rng.standard_normal((50, 20))))


def disturbed_by_block(rng: np.random.Generator) -> Blocks:
    """Half of the variance is common to a block: same distribution, fewer independent samples."""
    shared = rng.standard_normal((50, 1))
    own = rng.standard_normal((50, 20))
    return list(np.exp(SIGMA * (shared + own) / math.sqrt(2)))


def covered(draw: Callable[[np.random.Generator], Blocks], percentile: float, runs: int) -> float:
    """Share of runs whose interval holds the percentile of the log-normal distribution."""
    rng = np.random.default_rng(0)
    truth = math.exp(SIGMA * norm.ppf(percentile))
    hits = 0
    for _ in range(runs):
        interval = percentile_of(draw(rng), percentile).interval
        # An interval that is not given promises nothing: it may not count for us.
        hits += interval is not None and interval[0] <= truth <= interval[1]
    return hits / runs


@pytest.mark.parametrize("percentile", [0.5, 0.9])
@pytest.mark.parametrize("draw", [independent, disturbed_by_block])
def test_95_percent_intervals_of_percentiles_cover_95_percent(
    draw: Callable[[np.random.Generator], Blocks], percentile: float
) -> None:
    assert 0.93 <= covered(draw, percentile, runs=2000) <= 0.97


def test_taking_samples_for_independent_would_cover_far_less() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        ordered = np.sort(np.concatenate(disturbed_by_block(rng)))
        low, high = binom.ppf([0.025, 0.975], len(ordered), 0.5).astype(int)
        hits += ordered[low - 1] <= 1 <= ordered[high]
    assert hits / 300 < 0.7


def test_median_and_interval_do_not_depend_on_the_shape_of_the_distribution() -> None:
    blocks = independent(np.random.default_rng(1))
    plain, cubed = (percentile_of([b**k for b in blocks], 0.9) for k in (1, 3))
    assert plain.interval is not None
    assert cubed.interval == pytest.approx([edge**3 for edge in plain.interval])


def test_equal_samples_have_an_interval_of_no_width() -> None:
    assert percentile_of([np.full(10, 2.5)] * 10, 0.5).interval == (2.5, 2.5)


def test_a_high_percentile_of_few_independent_samples_has_no_interval() -> None:
    # Each block is one value repeated: 12 independent samples, of which none bounds a 95th.
    blocks = [np.full(50, value) for value in np.random.default_rng(0).random(12)]
    assert percentile_of(blocks, 0.95).interval is None


def test_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="10 blocks, got 9"):
        percentile_of([np.ones(100)] * 9, 0.5)
    with pytest.raises(ValueError, match="10 pairs, got 9 and 9"):
        paired_ratio(np.ones(9), np.ones(9), seed=0)


@pytest.mark.parametrize("blocks", [20, 60])
def test_95_percent_intervals_of_speedups_cover_95_percent(blocks: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for run in range(500):
        machine = np.exp(0.2 * rng.standard_normal(blocks))  # the same for both of a pair
        own = 0.02 * rng.standard_normal((2, blocks))
        own += (rng.random((2, blocks)) < 0.05) * rng.exponential(0.5, (2, blocks))
        baseline, other = machine * np.exp(own) * [[3.0], [2.0]]
        ratio = paired_ratio(baseline, other, seed=run, resamples=500)
        hits += ratio.low <= 1.5 <= ratio.high
    assert 0.93 <= hits / 500 <= 0.97


def test_pairing_removes_what_disturbs_both() -> None:
    machine = np.exp(np.random.default_rng(0).standard_normal(30))
    ratio = paired_ratio(3 * machine, 2 * machine, seed=0)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.5, 1.5, 1.5])
    assert ratio.blocks == 30


def test_the_speedup_the_other_way_round_is_the_inverse() -> None:
    a, b = np.exp(0.1 * np.random.default_rng(0).standard_normal((2, 25)))
    there, back = paired_ratio(a, b, seed=3), paired_ratio(b, a, seed=3)
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high, rel=1e-3)


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = np.exp(0.1 * np.random.default_rng(0).standard_normal((2, 25)))
    assert paired_ratio(a, b, seed=3) == paired_ratio(a, b, seed=3)
    assert paired_ratio(a, b, seed=3) != paired_ratio(a, b, seed=4)


def test_trimmed_mean_leaves_out_a_fifth_at_each_end() -> None:
    values = np.array([100.0, 2.0, 3.0, 4.0, -50.0])
    assert statistics.trimmed_mean(values) == pytest.approx(3.0)
