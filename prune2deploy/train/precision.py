"""Which number format to compute in."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import torch

_CPU_FACTS = Path("/proc/cpuinfo")
# Instructions that multiply bf16 numbers; without them autocast is slower than float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def cpu_bf16_features(cpu_facts: Path = _CPU_FACTS) -> list[str]:
    """Return which of AVX512_BF16 and AMX this processor has; empty where nobody can tell."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not cpu_facts.is_file():
        return []
    for line in cpu_facts.read_text().splitlines():
        if line.startswith("flags"):
            return sorted(_BF16_FLAGS & set(line.partition(":")[2].split()))
    return []


def resolve_precision(
    wanted: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """Return what "auto" means on a device: bf16 where the hardware computes in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "bf16" if cpu_bf16_features() else "fp32"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"
