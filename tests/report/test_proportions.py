"""Intervals of shares, against figures that were published and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from prune2deploy.report.proportions import difference_interval, share_interval


def test_wilsons_interval_of_81_out_of_263() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
    assert share_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_an_interval_stays_between_0_and_1() -> None:
    low, high = share_interval(1.0, 20)
    assert high == 1.0
    assert low == pytest.approx(20 / (20 + 1.959964**2))
    assert share_interval(0.0, 20) == pytest.approx((0.0, 1 - low))


def test_newcombes_interval_of_56_and_48_of_70_and_80() -> None:
    # Newcombe, "Interval estimation for the difference", 1998, table II, (a): 56/70 - 48/80 by
    # method 10 is 0.0524 to 0.3339. Ours has one number of images for both, so the ends are put
    # together here from the same source's Wilson intervals.
    low_1, high_1 = share_interval(56 / 70, 70)
    low_2, high_2 = share_interval(48 / 80, 80)
    below = ((0.8 - low_1) ** 2 + (high_2 - 0.6) ** 2) ** 0.5
    above = ((high_1 - 0.8) ** 2 + (0.6 - low_2) ** 2) ** 0.5
    assert (0.2 - below, 0.2 + above) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_true_difference_is_in_19_of_20_intervals() -> None:
    rng = np.random.default_rng(0)
    images, runs = 200, 2000
    before, after = (rng.binomial(images, share, runs) / images for share in (0.95, 0.90))
    held = 0
    for old, new in zip(before, after, strict=True):
        low, high = difference_interval(old, new, images)
        held += low <= -0.05 <= high
    # Three standard errors of a share of 2000.
    assert held / runs == pytest.approx(0.95, abs=0.015)


def test_it_runs_from_before_to_after() -> None:
    low, high = difference_interval(0.9, 0.7, 1000)
    assert low < -0.2 < high < 0
    assert difference_interval(0.7, 0.9, 1000) == pytest.approx((-high, -low))
