"""How long a model takes: the probe measures on a device, statistics.py judges."""

from __future__ import annotations

from prune2deploy.latency.format import format_result
from prune2deploy.latency.profile import (
    Latency,
    ProfileOptions,
    ProfileResult,
    Speedup,
    profile,
)

__all__ = [
    "Latency",
    "ProfileOptions",
    "ProfileResult",
    "Speedup",
    "format_result",
    "profile",
]
