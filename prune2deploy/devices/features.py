"""The instruction sets of a device's processor, from what its probe tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune2deploy.probe import cpu_names


def family_of(machine: Mapping[str, Any]) -> str:
    """Which processors it is one of: cpu_names.X86 or ARM."""
    return cpu_names.X86 if machine.get("kind") == "x86" else cpu_names.ARM


def features_of(machine: Mapping[str, Any]) -> dict[str, bool]:
    """Of those instruction sets that decide about speed, which it has."""
    return cpu_names.features_of(family_of(machine), machine.get("cpu_flags") or ())
