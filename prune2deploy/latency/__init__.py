"""How long a model takes: probe.py measures, statistics.py judges, devices.py knows where."""

from __future__ import annotations

from prune2deploy.latency.devices import DEVICES, Device, open_device
from prune2deploy.latency.format import format_result
from prune2deploy.latency.profile import (
    Latency,
    ProfileOptions,
    ProfileResult,
    Speedup,
    profile,
)

__all__ = [
    "DEVICES",
    "Device",
    "Latency",
    "ProfileOptions",
    "ProfileResult",
    "Speedup",
    "format_result",
    "open_device",
    "profile",
]
