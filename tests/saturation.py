"""Whether int8 sums of ONNX Runtime can saturate on this processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from prune2deploy.doctor.machine import features_of

_CPUINFO = Path("/proc/cpuinfo")

# x86 without VNNI adds pairs of int8 products in 16 bits; no other processor knows of VNNI.
SATURATES = _CPUINFO.exists() and features_of(_CPUINFO.read_text()).get("VNNI") is False

exact_int8 = pytest.mark.skipif(SATURATES, reason="int8 sums saturate on x86 without VNNI")
