"""What a machine is: what does not change during a measurement."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from .jetson import jetpack, parse_release, power_modes
from .nvidia import gpu_names
from .placing import CAN_PIN, cpu_list
from .reading import field, fields, numbers, parent, read, read_each


def cgroup_of_self(root: Path, controller: str) -> str | None:
    """Return the path of this process's cgroup; controller: "" for version 2, or such as "cpu"."""
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    return None


def cpu_quota(root: Path) -> dict[str, Any] | None:
    """Return {"cores": share of CPU time allowed, None for no limit}, or None where unknown."""
    for folder in (cgroup_of_self(root, "") or "", ""):
        text = read(root / "sys/fs/cgroup" / folder / "cpu.max")
        if text:
            quota, period = text.split()
            return {"cores": None if quota == "max" else int(quota) / int(period)}
    quota_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_us = read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota_us is None or period_us is None:
        return None
    return {"cores": None if int(quota_us) < 0 else int(quota_us) / int(period_us)}


def board_of(root: Path) -> str | None:
    """Return what the board calls itself; only boards with a device tree do."""
    tree = "sys/firmware/devicetree/base/model"
    return read(root / "proc/device-tree/model") or read(root / tree)


def kind_of(root: Path) -> str:
    """Return "raspberry_pi", "jetson", "x86", "arm" or "other"."""
    board, cpuinfo = board_of(root) or "", read(root / "proc/cpuinfo")
    compatible = read(root / "proc/device-tree/compatible") or ""
    if read(root / "etc/nv_tegra_release") or "Jetson" in board or "nvidia,tegra" in compatible:
        return "jetson"
    if "Raspberry Pi" in board or "Raspberry Pi" in (field(cpuinfo, "Model") or ""):
        return "raspberry_pi"
    if field(cpuinfo, "CPU implementer"):
        return "arm"
    if field(cpuinfo, "vendor_id") and field(cpuinfo, "flags"):
        return "x86"
    architecture = platform.machine().lower()
    if architecture in ("x86_64", "amd64") or re.fullmatch(r"i\d86", architecture):
        return "x86"
    return "arm" if architecture.startswith(("arm", "aarch64")) else "other"


def os_name(root: Path) -> str | None:
    text = read(root / "etc/os-release") or read(root / "usr/lib/os-release")
    found = re.search(r"^PRETTY_NAME=(.*)$", text or "", re.MULTILINE)
    return found.group(1).strip("\"' ") or None if found else None


def cpu_count(root: Path) -> int | None:
    """Return how many logical CPUs are switched on; a Jetson's power mode may switch some off."""
    online = read(root / "sys/devices/system/cpu/online")
    if online:
        return len(cpu_list(online))
    return len(fields(read(root / "proc/cpuinfo"), "processor")) or None


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what does not change during a measurement."""
    cpuinfo = read(root / "proc/cpuinfo")
    cpu = root / "sys/devices/system/cpu"
    no_turbo = read(cpu / "intel_pstate/no_turbo")
    boost = read(cpu / "cpufreq/boost")
    memory = field(read(root / "proc/meminfo"), "MemTotal")
    flags = field(cpuinfo, "flags") or field(cpuinfo, "Features")
    l4t = parse_release(read(root / "etc/nv_tegra_release"))
    governors = read_each(cpu, "cpufreq/policy*/scaling_available_governors", parent)
    return {
        "kind": kind_of(root),
        "cpu_model": field(cpuinfo, "model name") or field(cpuinfo, "Model"),
        "cpu_count": cpu_count(root),
        "cpu_flags": flags.split() if flags else None,
        "cpu_parts": sorted(set(fields(cpuinfo, "CPU part"))) or None,
        "board": board_of(root),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "os": os_name(root),
        "l4t": l4t,
        "jetpack": jetpack(l4t),
        "power_modes": power_modes(root),
        "gpu": gpu_names(root),
        "cpus_allowed": sorted(os.sched_getaffinity(0)) if CAN_PIN else None,
        "cpu_quota": cpu_quota(root),
        "turbo": no_turbo == "0" if no_turbo else boost == "1" if boost else None,
        "available_governors": governors and {name: v.split() for name, v in governors.items()},
        "max_clock_khz": numbers(read_each(cpu, "cpufreq/policy*/cpuinfo_max_freq", parent)),
        "memory_bytes": int(memory.split()[0]) * 1024 if memory else None,
    }
