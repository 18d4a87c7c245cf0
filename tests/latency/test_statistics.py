from __future__ import annotations

import math

import numpy as np
import pytest

from prune2deploy.latency import statistics
from prune2deploy.latency.statistics import paired_ratio, percentile_of, samples_needed

Blocks = list[np.ndarray]


@pytest.mark.parametrize(
    ("percentile", "discarded", "needed"),
    [
        # MLPerf Inference, early stopping; 662 is its official minimum for the 99th.
        (0.50, 1, 11),
        (0.50, 2, 14),
        (0.50, 5, 22),
        (0.50, 10, 35),
        (0.90, 1, 64),
        (0.90, 2, 81),
        (0.90, 5, 127),
        (0.90, 10, 197),
        (0.95, 1, 130),
        (0.95, 2, 165),
        (0.95, 5, 259),
        (0.95, 10, 398),
        (0.99, 1, 662),
        (0.99, 2, 838),
        (0.99, 5, 1307),
        (0.99, 10, 2010),
        (0.999, 1, 6636),
        (0.999, 2, 8403),
        (0.999, 5, 13105),
        (0.999, 10, 20140),
    ],
)
def test_samples_needed_are_those_of_mlperf(percentile: float, discarded: int, needed: int) -> None:
    assert samples_needed(percentile, discarded) == needed


def independent(rng: np.random.Generator) -> Blocks:
    return list(np.exp(0.3 * rng.standard_normal((50, 20))))


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
        paired_ratio(np.ones(9), np.ones(9))


def test_pairing_removes_what_disturbs_both() -> None:
    machine = np.exp(np.random.default_rng(0).standard_normal(30))
    ratio = paired_ratio(3 * machine, 2 * machine)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.5, 1.5, 1.5])
    assert ratio.blocks == 30


def test_the_speedup_the_other_way_round_is_the_inverse() -> None:
    a, b = np.exp(0.1 * np.random.default_rng(0).standard_normal((2, 25)))
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.value == pytest.approx(1 / back.value)
    assert [there.low, there.high] == pytest.approx([1 / back.high, 1 / back.low])


def test_a_speedups_interval_is_that_of_tukey_and_mclaughlin() -> None:
    # Of ten log ratios the outer two at each end become the next ones: 1 1 1 1 2 2 3 3 3 3, with
    # mean 2 and squares 8; the middle six are 1 1 2 2 3 3. Neighbours are unlike one another.
    logs = np.array([1.0, 3.0, -9.0, 50.0, 2.0, 2.0, 1.0, 3.0, 0.5, 4.0])
    ratio = paired_ratio(np.exp(logs), np.ones(10))
    reach = 2.570582 * math.sqrt(8 / (6 * 5))  # Student's t with 5 degrees of freedom, 97.5 %
    figures = [math.log(value) for value in (ratio.low, ratio.value, ratio.high)]
    assert figures == pytest.approx([2 - reach, 2, 2 + reach], rel=1e-6)


def test_likeness_of_neighbours_widens_a_speedups_interval() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    alternating = values[[0, 9, 1, 8, 2, 7, 3, 6, 4, 5]]
    (rising, _), (jumping, _) = map(statistics.trimmed_mean_error, (values, alternating))
    # Winsorised 3 3 3 4 5 6 7 8 8 8: squares of what is over the mean 42.5, products of
    # neighbours 33.75.
    likeness = 33.75 / 42.5
    assert jumping == pytest.approx(math.sqrt(42.5 / 30))
    assert rising == pytest.approx(jumping * math.sqrt((1 + likeness) / (1 - likeness)))


def test_trimmed_mean_leaves_out_a_fifth_at_each_end() -> None:
    values = np.array([100.0, 2.0, 3.0, 4.0, -50.0])
    assert statistics.trimmed_mean(values) == pytest.approx(3.0)
