"""What a Raspberry Pi's firmware tells, through vcgencmd."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .tools import tool_output


def parse_throttled(text: str | None) -> int | None:
    """Return the bits of `get_throttled`.

    Bit 0: the supply's voltage is too low, 1: clock capped, 2: throttled, 3: soft temperature
    limit. Bits 16 to 19: the same, at any time since the start.
    """
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", text or "")
    return int(found.group(1), 16) if found else None


def parse_temperature(text: str | None) -> float | None:
    """Return degrees C of `measure_temp`."""
    found = re.search(r"temp=(-?[\d.]+)", text or "")
    return float(found.group(1)) if found else None


def parse_clock(text: str | None) -> int | None:
    """Return Hz of `measure_clock`; the number in its brackets varies."""
    found = re.search(r"frequency\(\d+\)=(\d+)", text or "")
    return int(found.group(1)) if found else None


def parse_volts(text: str | None) -> float | None:
    """Return V of `measure_volts`."""
    found = re.search(r"volt=([\d.]+)V", text or "")
    return float(found.group(1)) if found else None


def parse_pmic(text: str | None) -> dict[str, float] | None:
    """Return {rail: W} of `pmic_read_adc` (Pi 5), of the rails with both a current and a voltage.

    The 5 V input has a voltage alone, so what the regulators themselves lose is not in it.
    """
    lines = re.findall(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?[\d.]+)[AV]", text or "")
    read = {(rail, unit): float(value) for rail, unit, value in lines}
    rails = {
        rail: amps * read[rail, "V"]
        for (rail, unit), amps in read.items()
        if unit == "A" and (rail, "V") in read
    }
    return rails or None


def pmic_watts(root: Path) -> float | None:
    """Return the power of all measured rails of a Pi 5 in W."""
    rails = parse_pmic(tool_output(root, "vcgencmd", "pmic_read_adc"))
    return sum(rails.values()) if rails else None


def pi_state(root: Path) -> dict[str, Any]:
    """Return the part of the machine's state that only a Raspberry Pi has."""

    def ask(*arguments: str) -> str | None:
        return tool_output(root, "vcgencmd", *arguments)

    return {
        "pi_throttled": parse_throttled(ask("get_throttled")),
        "pi_clock_hz": parse_clock(ask("measure_clock", "arm")),
        "pi_temperature_c": parse_temperature(ask("measure_temp")),
        "pi_core_volts": parse_volts(ask("measure_volts", "core")),
    }
