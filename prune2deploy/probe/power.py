"""How much power a machine takes: RAPL's counters and the INA3221 of Jetson boards."""

from __future__ import annotations

import re
from pathlib import Path

from .reading import number, read

# Rails that measure all that the module takes; the others then are parts of it.
_TOTALS = ("VDD_IN", "POM_5V_IN")


def rapl_zones(root: Path) -> dict[str, Path]:
    """Return {"package-0", "dram of package-0", ...: folder} of the zones that can be read.

    A package holds its cores and graphics but not the memory. "psys" holds all of them, and is not
    on all machines, so it is left out.
    """
    zones = {}
    for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        name = read(folder / "name") or ""
        upper = read(folder.parent / folder.name.rpartition(":")[0] / "name") or ""
        if number(read(folder / "energy_uj")) is None:
            continue
        if name.startswith("package"):
            zones[name] = folder
        elif name == "dram":
            zones[f"dram of {upper}"] = folder
    return zones


def rapl_counters(zones: dict[str, Path]) -> dict[str, int | None]:
    """Return the counters in microjoules."""
    return {name: number(read(folder / "energy_uj")) for name, folder in zones.items()}


def rapl_ranges(zones: dict[str, Path]) -> dict[str, int | None]:
    """Return the values at which the counters start again from 0."""
    return {name: number(read(f / "max_energy_range_uj")) for name, f in zones.items()}


def rapl_joules(
    before: dict[str, int | None], after: dict[str, int | None], ranges: dict[str, int | None]
) -> float | None:
    """Return what all zones used between two readings; a counter may have wrapped once."""
    total = 0
    for name, start in before.items():
        end, top = after.get(name), ranges.get(name)
        if start is None or end is None or (end < start and top is None):
            return None
        total += end - start + (top or 0 if end < start else 0)
    return total / 1e6 if before else None


def ina3221_rails(root: Path) -> dict[str, float | None] | None:
    """Return {rail: W, None where unreadable} of the current sensors, or None when there are none.

    Channel 7 is the sum of the shunts, and a label with NC is not connected.
    """
    rails: dict[str, float | None] = {}
    for device in sorted(root.glob("sys/bus/i2c/devices/*/name")):
        if "ina3221" not in (read(device) or ""):
            continue
        for path in sorted(device.parent.glob("hwmon/hwmon*/in*_label")):  # JetPack 5 and later
            channel, label = path.name[2 : -len("_label")], read(path) or ""
            if channel != "7" and _connected(label):
                millivolts = number(read(path.parent / f"in{channel}_input"))
                milliamps = number(read(path.parent / f"curr{channel}_input"))
                known = millivolts is not None and milliamps is not None
                rails[label] = (millivolts or 0) * (milliamps or 0) / 1e6 if known else None
        for path in sorted(device.parent.glob("iio:device*/rail_name_*")):  # JetPack 4
            label = read(path) or ""
            if _connected(label):
                channel = path.name.rpartition("_")[2]
                milliwatts = number(read(path.parent / f"in_power{channel}_input"))
                rails[label] = None if milliwatts is None else milliwatts / 1000
    return rails or None


def _connected(label: str) -> bool:
    return bool(label) and "NC" not in re.split(r"[\W_]+", label)


def total_watts(rails: dict[str, float | None] | None) -> float | None:
    """Return what the module takes: the rail in front of all others, or the sum of all rails.

    The board that carries the module is not in it.
    """
    if not rails:
        return None
    for name in _TOTALS:
        if name in rails:
            return rails[name]
    known = [watts for watts in rails.values() if watts is not None]
    return sum(known) if len(known) == len(rails) else None


def ina3221_watts(root: Path) -> float | None:
    return total_watts(ina3221_rails(root))
