"""What could disturb a measurement, as it is now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .reading import field, numbers, parent, read, read_each, zone


def state(root: Path = Path("/")) -> dict[str, Any]:
    """Return what could disturb a measurement, as it is now."""
    cpu = root / "sys/devices/system/cpu"
    own = read(root / "proc/self/status")
    switches = [field(own, kind + "_ctxt_switches") for kind in ("voluntary", "nonvoluntary")]
    waited = read(root / "proc/self/schedstat")
    load = read(root / "proc/loadavg")
    ticks = read(root / "proc/stat")  # cpu user nice system idle iowait irq softirq steal
    policies = "cpufreq/policy*/"
    return {
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clock_khz": numbers(read_each(cpu, policies + "scaling_cur_freq", parent)),
        "governor": read_each(cpu, policies + "scaling_governor", parent),
        "temperature_c": numbers(read_each(root, "sys/class/thermal/*/temp", zone), 0.001),
        "throttle_count": numbers(
            read_each(cpu, "cpu*/thermal_throttle/core_throttle_count", lambda p: p.parts[-3])
        ),
        "load_average": [float(part) for part in load.split()[:3]] if load else None,
        # Of the measuring thread: forced off its CPU, and how long it then waited for one.
        "switches_voluntary": int(switches[0]) if switches[0] else None,
        "switches_forced": int(switches[1]) if switches[1] else None,
        "waited_for_cpu_ns": int(waited.split()[1]) if waited else None,
        # Time the hypervisor gave to somebody else, over all CPUs of this machine.
        "stolen_ticks": int(ticks.split()[8]) if ticks else None,
    }
