"""What a Jetson tells: its release, power mode, clocks and tegrastats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .power import total_watts
from .reading import read, read_each
from .tools import first_line, tool_output

# Of L4T to JetPack, from the sources of jetson_stats; "4.6.x": not told apart here.
_JETPACKS = {
    "32.7": "4.6.x",
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4+",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
# Names in /sys/class/devfreq: by generation of chip and kernel; Thor's is the last.
_GPU_DEVFREQ = re.compile(r"\.(gpu|gm20b|gp10b|gv11b|ga10b)$|^gpu-gpc-\d+$")


def parse_release(text: str | None) -> str | None:
    """Return L4T's version, such as "36.4.3", of /etc/nv_tegra_release."""
    found = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(l4t: str | None) -> str | None:
    """Return the JetPack that an L4T belongs to, or None for one that is not known."""
    parts = (l4t or "").split(".")
    return _JETPACKS.get(".".join(parts[:3])) or _JETPACKS.get(".".join(parts[:2]))


def parse_power_mode(text: str | None) -> dict[str, Any] | None:
    """Return {"name", "id"} of `nvpmodel -q`. Ids mean different modes on each module."""
    found = re.search(r"NV Power Mode:[ \t]*(\S.*?)\s*\n\s*(\d+)\s*$", text or "", re.MULTILINE)
    return {"name": found.group(1), "id": int(found.group(2))} if found else None


def parse_power_modes(text: str | None) -> list[dict[str, Any]] | None:
    """Return {"name", "id", "default"} of each mode of `nvpmodel -p --verbose`."""
    modes = re.findall(r"POWER_MODEL:\s*ID=(\d+)\s+NAME=(\S+)", text or "")
    default = re.search(r"PM_CONFIG:\s*DEFAULT=.*?\((\d+)\)", text or "")
    return [
        {"name": name, "id": int(i), "default": default.group(1) == i if default else None}
        for i, name in modes
    ] or None


def parse_clocks(text: str | None) -> dict[str, dict[str, Any]] | None:
    """Return {"cpu0", "GPU", "EMC", ...: fields} of `jetson_clocks --show`; numbers are int.

    CPU clocks are in kHz, the others in Hz, as it prints them.
    """
    units: dict[str, dict[str, Any]] = {}
    for line in (text or "").splitlines():
        found = re.match(r"\s*(\w+):?\s+(?=.*\bMinFreq=)", line)
        if found:
            pairs = re.findall(r"(\w+)=(\S+)", line)
            units[found.group(1)] = {k: int(v) if v.isdigit() else v for k, v in pairs}
    return units or None


def pinned(units: dict[str, dict[str, Any]] | None) -> str | None:
    """Return "pinned" when every clock that is on has one value only, else "free"."""
    if units is None:
        return None
    on = [fields for fields in units.values() if fields.get("Online") != 0]
    fixed = [f.get("FreqOverride") == 1 or f["MinFreq"] == f.get("MaxFreq") for f in on]
    return "pinned" if all(fixed) else "free"


def clocks_by_files(root: Path) -> str | None:
    """The same for CPU and GPU by what anybody may read; None unless both are there."""
    policies = root / "sys/devices/system/cpu/cpufreq"
    pairs = [
        (read(folder / "scaling_min_freq"), read(folder / "scaling_max_freq"))
        for folder in policies.glob("policy*")
    ]
    gpus = [(read(folder / "min_freq"), read(folder / "max_freq")) for folder in _gpus(root)]
    if not pairs or not gpus or any(None in pair for pair in pairs + gpus):
        return None
    return "pinned" if all(low == high for low, high in pairs + gpus) else "free"


def _gpus(root: Path) -> list[Path]:
    return [p for p in sorted(root.glob("sys/class/devfreq/*")) if _GPU_DEVFREQ.search(p.name)]


def gpu_clock_hz(root: Path) -> int | None:
    """Return the clock of the GPU, which is a part of the chip."""
    texts = [read(folder / "cur_freq") for folder in _gpus(root)]
    return next((int(text) for text in texts if text and text.isdigit()), None)


def power_mode(root: Path) -> dict[str, Any] | None:
    return parse_power_mode(tool_output(root, "nvpmodel", "-q"))


def power_modes(root: Path) -> list[dict[str, Any]] | None:
    return parse_power_modes(tool_output(root, "nvpmodel", "-p", "--verbose"))


def jetson_clocks(root: Path) -> str | None:
    """Return whether `jetson_clocks` holds the clocks: "pinned", "free", or None: unknown."""
    if read(root / "etc/nv_tegra_release") is None:
        return None
    # For root alone; it also knows of the memory's clock.
    return pinned(parse_clocks(tool_output(root, "jetson_clocks", "--show"))) or clocks_by_files(
        root
    )


def overcurrent_count(root: Path) -> dict[str, str] | None:
    """Return {"oc1", ...: text} of the events in which too much current slowed the chip down."""
    pattern = "sys/class/hwmon/hwmon*/oc*_event_cnt"
    return read_each(root, pattern, lambda path: path.name.partition("_")[0])


def parse_tegrastats(line: str) -> dict[str, Any]:
    """Return what one line of tegrastats holds; what it lacks is None.

    ram_mb, swap_mb: (used, total). cpus: per core (load in %, MHz), or None for one that
    is off. emc, gpu: load in % and mhz, for the GPU a list. temperature_c by sensor. power_mw by
    rail: (now, average).
    """
    cores = re.search(r"\bCPU \[([^\]]*)\]", line)
    emc = re.search(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?", line)
    power = r"(?<!\S)([A-Za-z]\w*) (\d+)(?:mW)?/(\d+)(?:mW)?(?:/\d+(?:mW)?)?(?!\S)"
    return {
        "ram_mb": _used_of(line, "RAM"),
        "swap_mb": _used_of(line, "SWAP"),
        "cpus": [_core(text) for text in cores.group(1).split(",")] if cores else None,
        "emc": {"load": _int(emc.group(1)), "mhz": _int(emc.group(2))} if emc else None,
        "gpu": {
            "load": _int(gpu.group(1)),
            "mhz": [int(text) for text in gpu.group(2).split(",")] if gpu.group(2) else None,
        }
        if gpu
        else None,
        "temperature_c": {
            name: float(value)
            for name, value in re.findall(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d+(?:\.\d+)?)C\b", line)
        }
        or None,
        "power_mw": {
            rail: (int(now), int(average)) for rail, now, average in re.findall(power, line)
        }
        or None,
    }


def tegrastats_watts(root: Path) -> float | None:
    """Return what the module takes now."""
    rails = parse_tegrastats(first_line(root, "tegrastats", "--interval", "100") or "")["power_mw"]
    return total_watts({rail: now / 1000 for rail, (now, _) in rails.items()}) if rails else None


def _used_of(line: str, name: str) -> tuple[int, int] | None:
    found = re.search(rf"(?<!\S){name} (\d+)/(\d+)MB", line)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _core(text: str) -> tuple[int, int | None] | None:
    found = re.match(r"\s*(\d+)%(?:@(\d+))?", text)
    return (int(found.group(1)), _int(found.group(2))) if found else None


def _int(text: str | None) -> int | None:
    return int(text) if text else None
