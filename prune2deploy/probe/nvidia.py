"""A discrete NVIDIA GPU, through nvidia-smi. A Jetson's GPU is in jetson.py."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .reading import read
from .tools import find_tool, tool_output

# Newer drivers call them events, older ones know only the second name.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_FIELDS = "name,clocks.sm,clocks.mem,temperature.gpu,power.draw"


def parse_smi(text: str | None) -> list[dict[str, str | None]]:
    """Return a row per GPU of `nvidia-smi --format=csv`, {field without unit: text or None}.

    Fields are named as in its first line, such as "clocks.current.sm"; a value that the GPU does
    not have ("[N/A]") is None.
    """
    lines = [line for line in (text or "").splitlines() if line.strip()]
    if not lines:
        return []
    names = [re.sub(r"\s*\[.*\]$", "", name.strip()) for name in lines[0].split(",")]
    rows = []
    for line in lines[1:]:
        texts = [None if v.strip()[:1] in ("", "[") else v.strip() for v in line.split(",")]
        if len(texts) == len(names):
            rows.append({name: texts[index] for index, name in enumerate(names)})
    return rows


def gpu_facts(row: dict[str, str | None]) -> dict[str, Any]:
    """Return {"name", "clock_mhz", ...} of a row; what is missing there is None."""

    def number(*names: str) -> float | None:
        found = re.match(r"-?[\d.]+", next((row[n] for n in names if row.get(n)), None) or "")
        return float(found.group()) if found else None

    return {
        "name": row.get("name"),
        "clock_mhz": number("clocks.current.sm", "clocks.sm"),
        "memory_clock_mhz": number("clocks.current.memory", "clocks.mem"),
        "temperature_c": number("temperature.gpu"),
        "power_w": number("power.draw"),
        # Hexadecimal bits; bit 0 says that the GPU is idle, which is no throttling.
        "throttle_reasons": next((row[name] for name in _REASONS if row.get(name)), None),
    }


def has_gpu(root: Path) -> bool:
    return read(root / "etc/nv_tegra_release") is None and find_tool("nvidia-smi", root) is not None


def chosen() -> str:
    """The GPU that CUDA programs see first, as nvidia-smi calls it; the first one, if not told."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def gpu_names(root: Path) -> str | None:
    """Return the names of the discrete GPUs, separated by commas."""
    if not has_gpu(root):
        return None
    rows = parse_smi(tool_output(root, "nvidia-smi", "--query-gpu=name", "--format=csv"))
    return ", ".join(name for name in (row.get("name") for row in rows) if name) or None


def gpu_state(root: Path) -> dict[str, Any] | None:
    """Return the state of the discrete GPU that a program here would use."""
    if not has_gpu(root):
        return None
    for reasons in _REASONS:
        query = f"--query-gpu={_FIELDS},{reasons}"
        rows = parse_smi(tool_output(root, "nvidia-smi", "-i", chosen(), query, "--format=csv"))
        if rows:
            return gpu_facts(rows[0])
    return None
