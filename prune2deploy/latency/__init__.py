"""How long a model takes: the probe measures on a device, statistics.py judges."""

from __future__ import annotations

from prune2deploy.latency.campaign import Campaign, Failure, profile_devices
from prune2deploy.latency.format import format_result
from prune2deploy.latency.kept import ResultFolder, keep_layers
from prune2deploy.latency.layers import LayersResult, profile_layers
from prune2deploy.latency.layers_format import format_layers
from prune2deploy.latency.options import NVIDIA, ProfileOptions
from prune2deploy.latency.outputs import outputs_on
from prune2deploy.latency.profile import profile
from prune2deploy.latency.results import Latency, ProfileResult, Speedup

__all__ = [
    "NVIDIA",
    "Campaign",
    "Failure",
    "Latency",
    "LayersResult",
    "ProfileOptions",
    "ProfileResult",
    "ResultFolder",
    "Speedup",
    "format_layers",
    "format_result",
    "keep_layers",
    "outputs_on",
    "profile",
    "profile_devices",
    "profile_layers",
]
