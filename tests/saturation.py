"""Whether int8 sums of ONNX Runtime can saturate on this processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from prune2deploy.probe import cpu_names

_CPUINFO = Path("/proc/cpuinfo")


def _saturates() -> bool:
    """x86 without VNNI adds pairs of int8 products in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64") or not _CPUINFO.exists():
        return False
    words = _CPUINFO.read_text().split()
    return not cpu_names.features_of(cpu_names.X86, words)["VNNI"]


SATURATES = _saturates()
exact_int8 = pytest.mark.skipif(SATURATES, reason="int8 sums saturate on x86 without VNNI")
