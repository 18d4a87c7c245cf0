"""Intervals of shares of test images, and of the difference of two."""

from __future__ import annotations

import math

_Z = 1.959963984540054
"""The normal distribution has 95 % between plus and minus this."""

SHARES = {"top1", "top5"}
"""Metrics that are shares of the images, in percent."""


def share_interval(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (0 to 1) of so many images.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    square = _Z * _Z
    centre = share + square / (2 * images)
    half = _Z * math.sqrt(share * (1 - share) / images + square / (4 * images * images))
    scale = 1 + square / images
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def difference_interval(before: float, after: float, images: int) -> tuple[float, float]:
    """The 95 % interval of after - before, both shares (0 to 1) of so many images.

    The two are taken as independent. They were judged on the same images and mostly fail on the
    same ones, so the true interval is narrower.

    Source: Newcombe, "Interval estimation for the difference between independent proportions",
    1998, method 10.
    """
    low_b, high_b = share_interval(before, images)
    low_a, high_a = share_interval(after, images)
    difference = after - before
    below = math.hypot(after - low_a, high_b - before)
    above = math.hypot(high_a - after, before - low_b)
    return difference - below, difference + above
