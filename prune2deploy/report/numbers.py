"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count_text(value: float) -> str:
    """1234567 -> '1.23 M'."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f}"


def size_text(size: int) -> str:
    """Bytes in units of 10^6 or 10^3."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def percent_change(old: float, new: float) -> str:
    """From 200 to 150: '-25.0 %'."""
    return f"{(new / old - 1) * 100:+.1f} %" if old else "unknown"


def milliseconds(value: float | None, interval: Sequence[float] | None) -> str:
    """'1.234 ms [1.230, 1.240]': four figures; says so where there is no value or no interval."""
    if value is None:
        return "too few samples"
    digits = min(max(3 - math.floor(math.log10(value)), 1), 6) if value > 0 else 3
    if interval is None:
        return f"{value:.{digits}f} ms [no interval]"
    return f"{value:.{digits}f} ms [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
