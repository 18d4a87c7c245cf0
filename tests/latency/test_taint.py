"""What taints a measurement: each rule with what it is for, and without."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_onnx import QUICK, ConvModel

from prune2deploy.devices.local import LocalDevice
from prune2deploy.latency.profile import ProfileOptions, result_from_answer
from prune2deploy.latency.taint import taints

FLAT = np.full(30, 2e6)


def answer(
    warm: Mapping[str, Any], end: Mapping[str, Any], *watch: Mapping[str, Any]
) -> dict[str, Any]:
    """A measurement of 10 s."""
    return {
        "state": {"start": {**warm, "clock_khz": {"policy0": 600000}}, "warm": warm, "end": end},
        "watch": list(watch),
        "turns": [{"model": 0, "block": 0, "samples_ns": [10**9] * 10}],
        "models": [{"name": "net"}],
    }


CASES = {
    "throttle_count": ({"cpu0": 3}, {"cpu0": 5}, "throttled 2 times"),
    "package_throttle_count": ({"cpu0": 3}, {"cpu0": 5}, "throttled 2 times"),
    "overcurrent_count": ({"oc1": 0}, {"oc1": 1}, "over-current"),
    "cooling_state": (
        {"cooling_device0 Processor": 0},
        {"cooling_device0 Processor": 3},
        "level 3",
    ),
    "clock_khz": ({"policy0": 2400000}, {"policy0": 1000000}, "between 1.00 and 2.40 GHz"),
    "pi_clock_hz": (2.4e9, 1.5e9, "the Arm cores was between 1.50 and 2.40"),
    "waited_for_cpu_ns": (10**9, 4 * 10**9, "30% of the time was spent waiting"),
    "stolen_ticks": (1000, 1200, "20% of a CPU's time"),
    "swap_pages": ({"in": 5, "out": 5}, {"in": 5, "out": 505}, "500 pages were swapped"),
    "cgroup_throttled": ({"periods": 2, "time_us": 5}, {"periods": 9, "time_us": 9}, "7 times"),
    "pi_throttled": (0, 0x50005, "under-voltage"),
}
HARMLESS = {
    "throttle_count": ({"cpu0": 3}, {"cpu0": 3}),
    "cooling_state": ({"cooling_device0 pwm-fan": 0}, {"cooling_device0 pwm-fan": 3}),
    "clock_khz": ({"policy0": 2400000}, {"policy0": 2390000}),
    "waited_for_cpu_ns": (10**9, 10**9 + 10**8),
    "stolen_ticks": (1000, 1020),
    "swap_pages": ({"in": 5, "out": 5}, {"in": 5, "out": 6}),
    "cgroup_throttled": ({"periods": 2, "time_us": 5}, {"periods": 2, "time_us": 5}),
    # What has happened since the start, long before this measurement.
    "pi_throttled": (0x50000, 0x50000),
}


@pytest.mark.parametrize("key", CASES)
def test_a_disturbance_is_told(key: str) -> None:
    before, after, expected = CASES[key]
    found = taints(answer({key: before}, {key: after}), [FLAT])
    assert any(expected in one for one in found), found


@pytest.mark.parametrize("key", HARMLESS)
def test_what_is_usual_is_none(key: str) -> None:
    before, after = HARMLESS[key]
    assert taints(answer({key: before}, {key: after}), [FLAT]) == ()


def test_what_is_not_known_taints_nothing() -> None:
    nothing = dict.fromkeys(CASES)
    assert taints(answer(nothing, nothing, nothing), [FLAT]) == ()
    assert taints(answer({}, {}), [FLAT]) == ()


def test_what_only_the_watch_saw() -> None:
    same = {"clock_khz": {"policy0": 2400000}, "pi_throttled": 0}
    hot = {"clock_khz": {"policy0": 1500000}, "pi_throttled": 0x4}
    found = taints(answer(same, same, same, hot, same), [FLAT])
    assert len(found) == 2
    assert "throttled during the measurement" in found[0]
    assert "between 1.50 and 2.40 GHz" in found[1]


def test_another_power_mode() -> None:
    mode = {"power_mode": {"name": "MAXN", "id": 0}}, {"power_mode": {"name": "15W", "id": 1}}
    assert taints(answer(*mode), [FLAT]) == ("the power mode changed from MAXN to 15W",)


def test_drift_is_a_trend_and_not_noise() -> None:
    noise = np.random.default_rng(0).normal(1, 0.02, 40)
    level = {"state": 1}
    assert taints(answer(level, level), [noise]) == ()
    found = taints(answer(level, level), [noise * np.linspace(1, 1.2, 40)])
    assert len(found) == 1
    assert "drifted by +" in found[0]


def ignore(line: Mapping[str, Any]) -> None:
    pass


def measured(model: Path, report: Any = ignore, **settings: Any) -> tuple[str, ...]:
    job = {"models": [{"name": "net", "path": str(model)}], **QUICK, "lock": None, **settings}
    with LocalDevice() as device:
        found = device.run_probe(job, time_limit_s=120, report=report)
    options = ProfileOptions(**QUICK, threads=1, spinning=True, pin="auto")
    return result_from_answer("local", {"net": model}, options, found).tainted


def test_a_busy_loop_on_the_same_cpu(conv_model: ConvModel) -> None:
    cpu = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        found = measured(conv_model(16), pin=[cpu], min_time_s=0.5)
        busy.kill()
    assert any("other programs had the CPU" in one for one in found), found


def test_a_clock_that_drops_in_a_made_up_machine(conv_model: ConvModel, tmp_path: Path) -> None:
    root = tmp_path / "machine"
    clock = root / "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq"
    clock.parent.mkdir(parents=True)
    clock.write_text("2400000\n")
    steady = measured(conv_model(4), sysroot=str(root))
    assert not any("clock" in one for one in steady)
    dropped = threading.Event()

    def drop(line: Mapping[str, Any]) -> None:
        if line["stage"] == "measure" and not dropped.is_set():
            dropped.set()
            clock.write_text("1000000\n")

    found = measured(conv_model(4), drop, sysroot=str(root), min_time_s=0.3)
    assert any("the clock of policy0 was between 1.00 and 2.40 GHz" in one for one in found)
