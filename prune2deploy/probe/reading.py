"""Small files of the kernel. Whatever cannot be read is None, never 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable


def read(path: Path) -> str | None:
    """Return a small text file without its line end, or None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def read_each(root: Path, pattern: str, key: Callable[[Path], str]) -> dict[str, str] | None:
    """Return {key: text} of the readable files that match, or None when there are none."""
    found = {key(path): read(path) for path in sorted(root.glob(pattern))}
    return {name: text for name, text in found.items() if text is not None} or None


def number(text: str | None) -> int | None:
    """Return an integer, or None for what is none, such as "<unsupported>"."""
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text.strip()) else None


def numbers(texts: dict[str, str] | None, scale: float = 1) -> dict[str, float] | None:
    """Return the texts that are integers as numbers, or None when there are none."""
    found = {name: number(text) for name, text in (texts or {}).items()}
    return {name: value * scale for name, value in found.items() if value is not None} or None


def field(text: str | None, name: str) -> str | None:
    """Return the value of a 'name: value' line, as in /proc/self/status."""
    return next(iter(fields(text, name)), None)


def fields(text: str | None, name: str) -> list[str]:
    """Return the values of all such lines, as of each processor in /proc/cpuinfo."""
    lines = [line.partition(":") for line in (text or "").splitlines()]
    return [value.strip() for label, colon, value in lines if colon and label.strip() == name]


def counter(text: str | None, name: str) -> int | None:
    """Return the value of a 'name value' line, as in /proc/vmstat."""
    found = re.search(rf"^{re.escape(name)}[ \t]+(\d+)\s*$", text or "", re.MULTILINE)
    return int(found.group(1)) if found else None


def parent(path: Path) -> str:
    return path.parent.name


def zone(path: Path) -> str:
    """Name a file by its folder and that folder's type, such as "thermal_zone0 cpu-thermal"."""
    return f"{path.parent.name} {read(path.parent / 'type') or ''}"


def of_policies(cpu: Path, name: str) -> dict[str, str] | None:
    """Return a file of each clock domain: by policy, or by CPU where there are no policies.

    cpu: the folder sys/devices/system/cpu.
    """
    return read_each(cpu, f"cpufreq/policy*/{name}", parent) or read_each(
        cpu, f"cpu[0-9]*/cpufreq/{name}", lambda path: path.parts[-3]
    )
