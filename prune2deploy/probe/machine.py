"""What a machine is: what does not change during a measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from .placing import CAN_PIN
from .reading import field, read


def cpu_quota(root: Path) -> dict[str, Any] | None:
    """Return {"cores": share of CPU time allowed, None for no limit}, or None where unknown."""
    groups = (read(root / "proc/self/cgroup") or "").splitlines()
    own = next((line[3:].strip("/") for line in groups if line.startswith("0::")), "")
    for folder in (own, ""):
        text = read(root / "sys/fs/cgroup" / folder / "cpu.max")
        if text:
            quota, period = text.split()
            return {"cores": None if quota == "max" else int(quota) / int(period)}
    quota_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota_us is None or period_us is None:
        return None
    return {"cores": None if int(quota_us) < 0 else int(quota_us) / int(period_us)}


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what does not change during a measurement."""
    cpuinfo = read(root / "proc/cpuinfo")
    cpu = root / "sys/devices/system/cpu"
    no_turbo = read(cpu / "intel_pstate/no_turbo")
    boost = read(cpu / "cpufreq/boost")
    memory = field(read(root / "proc/meminfo"), "MemTotal")
    return {
        "cpu_model": field(cpuinfo, "model name") or field(cpuinfo, "Model"),
        "board": read(root / "proc/device-tree/model"),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "cpus_allowed": sorted(os.sched_getaffinity(0)) if CAN_PIN else None,
        "cpu_quota": cpu_quota(root),
        "turbo": no_turbo == "0" if no_turbo else boost == "1" if boost else None,
        "memory_bytes": int(memory.split()[0]) * 1024 if memory else None,
    }
