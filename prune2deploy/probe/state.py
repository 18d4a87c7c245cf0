"""What could disturb a measurement, as it is now."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Collection

from .jetson import gpu_clock_hz, jetson_clocks, overcurrent_count, power_mode
from .machine import cgroup_of_self
from .nvidia import gpu_state
from .raspberry_pi import pi_state
from .reading import counter, field, numbers, of_policies, read, read_each, zone


def state(
    root: Path = Path("/"), process: str = "self", skip: Collection[str] = ()
) -> dict[str, Any]:
    """Return what could disturb a measurement, as it is now.

    process: whose switches and waiting, a folder of /proc. skip: of "power_mode", "jetson_clocks"
    and "gpu_state", which take programs that are slow; what is skipped is None.
    """
    cpu = root / "sys/devices/system/cpu"
    own = read(root / "proc" / process / "status")
    switches = [field(own, kind + "_ctxt_switches") for kind in ("voluntary", "nonvoluntary")]
    waited = read(root / "proc" / process / "schedstat")
    load = read(root / "proc/loadavg")
    ticks = read(root / "proc/stat")  # cpu user nice system idle iowait irq softirq steal
    available = field(read(root / "proc/meminfo"), "MemAvailable")
    throttle = "cpu*/thermal_throttle/"
    return {
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clock_khz": numbers(of_policies(cpu, "scaling_cur_freq")),
        "governor": of_policies(cpu, "scaling_governor"),
        "temperature_c": numbers(read_each(root, "sys/class/thermal/*/temp", zone), 0.001),
        # Of a fan, or of what is slowed down against heat; 0: not at all.
        "cooling_state": numbers(
            read_each(root, "sys/class/thermal/cooling_device*/cur_state", zone)
        ),
        "throttle_count": numbers(read_each(cpu, throttle + "core_throttle_count", _cpu)),
        "package_throttle_count": numbers(
            read_each(cpu, throttle + "package_throttle_count", _cpu)
        ),
        "overcurrent_count": numbers(overcurrent_count(root)),
        **pi_state(root),
        "power_mode": None if "power_mode" in skip else power_mode(root),
        "jetson_clocks": None if "jetson_clocks" in skip else jetson_clocks(root),
        "gpu_clock_hz": gpu_clock_hz(root),
        "gpu_state": None if "gpu_state" in skip else gpu_state(root),
        "load_average": [float(part) for part in load.split()[:3]] if load else None,
        # Of the measuring thread: forced off its CPU, and how long it then waited for one.
        "switches_voluntary": int(switches[0]) if switches[0] else None,
        "switches_forced": int(switches[1]) if switches[1] else None,
        "waited_for_cpu_ns": int(waited.split()[1]) if waited else None,
        # Time the hypervisor gave to somebody else, over all CPUs of this machine.
        "stolen_ticks": int(ticks.split()[8]) if ticks else None,
        "pressure": pressure(root),
        "cgroup_throttled": cgroup_throttled(root),
        "swap_pages": swap_pages(root),
        "memory_available_bytes": int(available.split()[0]) * 1024 if available else None,
    }


def _cpu(path: Path) -> str:
    return path.parts[-3]


def swap_pages(root: Path) -> dict[str, int] | None:
    """Return the pages that were read from and written to swap since the start."""
    text = read(root / "proc/vmstat")
    read_in, out = counter(text, "pswpin"), counter(text, "pswpout")
    return None if read_in is None or out is None else {"in": read_in, "out": out}


def pressure(root: Path) -> dict[str, float | None] | None:
    """Return the share of the last 10 s, in %, in which some task waited for each resource."""
    found: dict[str, float | None] = {}
    for name in ("cpu", "memory", "io"):
        text = read(root / "proc/pressure" / name)
        line = re.search(r"^some avg10=([\d.]+)", text or "", re.MULTILINE)
        found[name] = float(line.group(1)) if line else None
    return None if set(found.values()) == {None} else found


def cgroup_throttled(root: Path) -> dict[str, int] | None:
    """Return in how many periods, and for how long, this process's cgroup was held back."""
    groups = root / "sys/fs/cgroup"
    second = cgroup_of_self(root, "")
    first = cgroup_of_self(root, "cpu")
    folders = [groups / path for path in (second, "") if path is not None]
    for name in ("cpu", "cpu,cpuacct"):
        folders += [groups / name / path for path in (first, "") if path is not None]
    for folder in folders:
        text = read(folder / "cpu.stat")
        periods, time_us = counter(text, "nr_throttled"), counter(text, "throttled_usec")
        time_ns = counter(text, "throttled_time")  # of version 1
        if time_us is None and time_ns is not None:
            time_us = time_ns // 1000
        if periods is not None and time_us is not None:
            return {"periods": periods, "time_us": time_us}
    return None
