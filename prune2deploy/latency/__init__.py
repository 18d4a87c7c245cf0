"""How long a model takes: the probe measures on a device, statistics.py judges."""

from __future__ import annotations

from prune2deploy.latency.campaign import Campaign, Failure, check_names, measure_on
from prune2deploy.latency.format import format_result
from prune2deploy.latency.layers import LayersResult, format_layers, profile_layers
from prune2deploy.latency.profile import (
    Latency,
    ProfileOptions,
    ProfileResult,
    Speedup,
    profile,
)

__all__ = [
    "Campaign",
    "Failure",
    "Latency",
    "LayersResult",
    "ProfileOptions",
    "ProfileResult",
    "Speedup",
    "check_names",
    "format_layers",
    "format_result",
    "measure_on",
    "profile",
    "profile_layers",
]
