"""Whether intervals that say 95 % hold the truth that often: simulations with fixed seeds.

The default run has few repetitions and wide bounds, the slow one many and 93 to 97 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binom, norm

from prune2deploy.latency import statistics
from prune2deploy.latency.results import block_medians
from prune2deploy.latency.statistics import paired_ratio, percentile_of

Rng = np.random.Generator
Blocks = list[np.ndarray]
PERCENTILES = (0.5, 0.9, 0.95, 0.99)
SIGMA = 0.3
SLOW_SHARE = 0.12

quick_and_slow = pytest.mark.parametrize(
    "many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"]
)


def assert_95_percent(hits: int, runs: int, many: bool) -> None:
    if many:
        assert 0.93 <= hits / runs <= 0.97
    else:
        # Where the truth is within 93 to 97 %, this fails with a probability below 1e-4.
        assert binom.ppf(5e-5, runs, 0.93) <= hits <= binom.ppf(1 - 5e-5, runs, 0.97)


def alike(rng: Rng, shape: tuple[int, ...], rho: float) -> np.ndarray:
    """Standard normal values, neighbours along the last axis with this correlation."""
    steps = rng.standard_normal(shape)
    steps[..., 1:] *= math.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], steps, axis=-1)


def lognormal(percentile: float) -> float:
    return math.exp(SIGMA * norm.ppf(percentile))


def bimodal(percentile: float) -> float:
    fast = 1 - SLOW_SHARE
    if percentile < fast:
        return 1 + 0.02 * norm.ppf(percentile / fast)
    return 1.5 + 0.05 * norm.ppf((percentile - fast) / SLOW_SHARE)


def modes(rng: Rng, slow: np.ndarray) -> np.ndarray:
    noise = rng.standard_normal(slow.shape)
    return np.where(slow, 1.5 + 0.05 * noise, 1 + 0.02 * noise)


def independent_lognormal(rng: Rng) -> np.ndarray:
    return np.exp(SIGMA * rng.standard_normal(3000))


def independent_bimodal(rng: Rng) -> np.ndarray:
    return modes(rng, rng.random(3000) < SLOW_SHARE)


def autocorrelated_lognormal(rng: Rng) -> np.ndarray:
    return np.exp(SIGMA * alike(rng, (3000,), 0.5))


def autocorrelated_bimodal(rng: Rng) -> np.ndarray:
    """Slow phases of four runs on average, and fast ones in between."""
    slow_length = 4
    fast_length = slow_length * (1 - SLOW_SHARE) / SLOW_SHARE
    slow_first = rng.random() < SLOW_SHARE
    slow = (np.arange(800) % 2 == 0) == slow_first
    lengths = np.where(
        slow, rng.geometric(1 / slow_length, 800), rng.geometric(1 / fast_length, 800)
    )
    return modes(rng, np.repeat(slow, lengths)[:3000])


def disturbed_by_block(rng: Rng) -> np.ndarray:
    """Half of the variance is common to a block of 20."""
    shared = np.repeat(rng.standard_normal(150), 20)
    return np.exp(SIGMA * (shared + rng.standard_normal(3000)) / math.sqrt(2))


SAMPLES = [
    (independent_lognormal, lognormal),
    (independent_bimodal, bimodal),
    (autocorrelated_lognormal, lognormal),
    (autocorrelated_bimodal, bimodal),
]


def held(
    draw: Callable[[Rng], np.ndarray], truth: Callable[[float], float], share: float, runs: int
) -> list[bool | None]:
    """Whether each run's interval holds the truth; None where there is no interval."""
    rng = np.random.default_rng(0)
    found: list[bool | None] = []
    for _ in range(runs):
        interval = percentile_of(np.split(draw(rng), 150), share).interval
        found.append(interval and bool(interval[0] <= truth(share) <= interval[1]))
    return found


@quick_and_slow
@pytest.mark.parametrize("share", PERCENTILES)
@pytest.mark.parametrize(("draw", "truth"), SAMPLES, ids=[draw.__name__ for draw, _ in SAMPLES])
def test_95_percent_intervals_of_percentiles_cover_95_percent(
    draw: Callable[[Rng], np.ndarray], truth: Callable[[float], float], share: float, many: bool
) -> None:
    runs = 3000 if many else 60
    # An interval that is not given promises nothing: it may not count for us.
    hits = sum(one is True for one in held(draw, truth, share, runs))
    assert_95_percent(hits, runs, many)


@quick_and_slow
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_samples_disturbed_by_block_are_covered_as_well(share: float, many: bool) -> None:
    runs = 3000 if many else 60
    hits = sum(one is True for one in held(disturbed_by_block, lognormal, share, runs))
    assert_95_percent(hits, runs, many)


@pytest.mark.slow
def test_intervals_that_few_get_cover_less() -> None:
    """The limit of the method: where the samples hardly bound a percentile, those runs are given
    an interval that happen to look steady, and their intervals are too short."""
    found = held(lambda rng: np.exp(SIGMA * alike(rng, (1500,), 0.9)), lognormal, 0.99, 2000)
    given = [one for one in found if one is not None]
    assert 0.1 < len(given) / len(found) < 0.6
    assert 0.75 < sum(given) / len(given) < 0.93


def test_taking_samples_for_independent_would_cover_far_less() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        ordered = np.sort(disturbed_by_block(rng))
        low, high = binom.ppf([0.025, 0.975], len(ordered), 0.5).astype(int)
        hits += ordered[low - 1] <= 1 <= ordered[high]
    assert hits / 300 < 0.7


def block_noise(rng: Rng, blocks: int) -> np.ndarray:
    return 0.02 * rng.standard_normal((2, blocks))


def common_drift(rng: Rng, blocks: int) -> np.ndarray:
    """A machine that slows down by half and jumps about, the same for both of a pair."""
    machine = np.linspace(0, 0.5, blocks) + np.cumsum(0.1 * rng.standard_normal(blocks))
    return machine + block_noise(rng, blocks)


def heavy_tails(rng: Rng, blocks: int) -> np.ndarray:
    return 0.02 * rng.standard_t(2, (2, blocks))


def disturbed_now_and_then(rng: Rng, blocks: int) -> np.ndarray:
    hit = rng.random((2, blocks)) < 0.05
    return block_noise(rng, blocks) + hit * rng.exponential(0.5, (2, blocks))


def covered(draw: Callable[[Rng, int], np.ndarray], blocks: int, runs: int) -> int:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(runs):
        baseline, other = np.exp(draw(rng, blocks)) * [[3.0], [2.0]]
        ratio = paired_ratio(baseline, other)
        hits += ratio.low <= 1.5 <= ratio.high
    return hits


@quick_and_slow
@pytest.mark.parametrize("blocks", [10, 20, 60])
@pytest.mark.parametrize("draw", [block_noise, common_drift, heavy_tails, disturbed_now_and_then])
def test_95_percent_intervals_of_speedups_cover_95_percent(
    draw: Callable[[Rng, int], np.ndarray], blocks: int, many: bool
) -> None:
    runs = 20000 if many else 400
    assert_95_percent(covered(draw, blocks, runs), runs, many)


@quick_and_slow
def test_neighbours_alike_cost_a_speedups_interval_little_of_its_coverage(many: bool) -> None:
    runs = 20000 if many else 1000

    def draw(rng: Rng, blocks: int) -> np.ndarray:
        return 0.02 * alike(rng, (2, blocks), 0.3)

    # 91.5 % for 20 blocks, where an interval that took them for independent has 87 %.
    assert 0.89 <= covered(draw, 20, runs) / runs <= 0.94


def test_the_mirrored_order_cancels_a_linear_drift_and_the_plain_one_does_not() -> None:
    """The machine slows down by 0.2 % per turn; model 0 takes 3 ns and model 1 takes 2."""

    def ratio(order: tuple[int, ...]) -> statistics.Ratio:
        turns = []
        for block in range(40 // len(order) * 2):
            for model in order:
                slower = 1 + 0.002 * len(turns)
                samples = [(3, 2)[model] * slower] * 3
                turns.append({"block": block, "model": model, "samples_ns": samples})
        return paired_ratio(block_medians(turns, 0), block_medians(turns, 1))

    mirrored = ratio((0, 1, 1, 0))
    assert [mirrored.low, mirrored.value, mirrored.high] == pytest.approx([1.5] * 3, rel=1e-12)
    plain = ratio((0, 1))
    # Model 1 always comes one turn later, and 0.2 % of up to 1.16 times its time makes it slower.
    assert 0.0015 < 1 - plain.value / 1.5 < 0.002
    assert plain.high < 1.5, "and the interval does not even hold the truth"
