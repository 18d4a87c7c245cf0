from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_onnx import QUICK, ConvModel

from prune2deploy.devices.local import LocalDevice
from prune2deploy.latency.options import ProfileOptions
from prune2deploy.latency.results import result_from_answer
from prune2deploy.latency.taint import taints
from prune2deploy.probe.state import state

STEADY = np.full(20, 1e6)
BLOCK_NS = [1_000_000] * 50  # 40 turns of this and two settling runs: 2.08 s


def answer(
    warm: Mapping[str, Any] | None = None,
    end: Mapping[str, Any] | None = None,
    watch: list[Mapping[str, Any]] | None = None,
    start: Mapping[str, Any] | None = None,
    **other: Any,
) -> dict[str, Any]:
    turn = {"model": 0, "settle_runs": 2, "samples_ns": BLOCK_NS}
    return {
        "cpus": [1],
        "models": [{"name": "net"}],
        "turns": [{**turn, "block": i // 2} for i in range(40)],
        "state": {"start": start or {}, "warm": warm or {}, "end": end or {}},
        "watch": None if watch is None else [{"at_s": i, **s} for i, s in enumerate(watch)],
        **other,
    }


def found(given: dict[str, Any]) -> tuple[str, ...]:
    return taints(given, STEADY)


def only(given: dict[str, Any]) -> str:
    (reason,) = found(given)
    return reason


def clock(**mhz: float) -> dict[str, Any]:
    return {"clock_khz": {name: value * 1000 for name, value in mhz.items()}}


def test_what_a_machine_does_not_tell_taints_nothing(tmp_path: Path) -> None:
    silent = dict.fromkeys(state(tmp_path))
    assert found(answer()) == ()
    assert found(answer(silent, silent, [silent, silent], silent)) == ()
    assert found({**answer(), "state": None, "cpus": None}) == ()


def test_the_probe_reads_what_the_rules_look_at(tmp_path: Path) -> None:
    asked: set[str] = set()

    class Asked(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return None

    job = {"runtime": "tensorrt", "provider": None}
    one = Asked(at_s=0.0)
    given = answer(one, one, None, one, job=job)
    given["watch"] = [one, one]
    given["state"] = dict.fromkeys(("start", "warm", "end"), one)
    assert found(given) == ()
    assert asked <= set(state(tmp_path))
    assert len(asked) > 12


@pytest.mark.parametrize("key", ["throttle_count", "package_throttle_count"])
def test_a_throttle_count_that_rises(key: str) -> None:
    before, after = {key: {"cpu0": 3, "cpu1": 7}}, {key: {"cpu0": 4, "cpu1": 12}}
    what = key.removesuffix("_throttle_count").replace("throttle_count", "core")
    assert f"{what} throttle count of cpu1 rose by 5 to 12" in only(answer(before, after))
    assert found(answer(before, before, start={key: {"cpu0": 0}})) == (), "in the warm-up"
    assert "of cpu1 rose by 5" in only(answer(before, None, [before, after]))


def test_worker_threads_that_never_rest() -> None:
    given = answer()
    for turn in given["turns"]:
        turn["rest_s"] = 0.05
    assert found(given) == ()
    given["turns"][3]["rest_s"] = given["turns"][7]["rest_s"] = None
    assert "before 2 of 40 turns the worker threads" in only(given)


def test_an_overcurrent_event() -> None:
    before, after = {"overcurrent_count": {"oc1": 0, "oc3": 41}}, {"overcurrent_count": {"oc3": 42}}
    assert "event count oc3 rose by 1 to 42" in only(answer(before, after))
    assert found(answer(before, before)) == ()


@pytest.mark.parametrize(
    ("bit", "what"),
    [(0, "under-voltage"), (1, "a capped clock"), (2, "throttling"), (3, "soft temperature limit")],
)
def test_a_flag_of_a_raspberry_pi(bit: int, what: str) -> None:
    calm, now, since = ({"pi_throttled": flags} for flags in (0, 1 << bit, 1 << (16 + bit)))
    assert what in only(answer(calm, calm, [calm, now], calm))
    assert "in 1 of 4 looks" in only(answer(calm, calm, [calm, now], calm))
    assert found(answer(calm, calm, [calm], now)) == (), "it was over before the measurement"
    # What happened since the start of the board counts if it was not so at the start.
    assert f"{what} since the warm-up" in only(answer(calm, since, None, calm))
    assert found(answer(since, since, [since], since)) == ()
    assert what in only(answer(since, since, [now], since))


def test_a_cooling_device_that_starts_to_slow_the_machine() -> None:
    def cooling(state: int, kind: str = "cpufreq-cpu0") -> dict[str, Any]:
        return {"cooling_state": {f"cooling_device0 {kind}": state}}

    off, on = cooling(0), cooling(2)
    reason = only(answer(off, off, [off, on], off))
    assert "'cooling_device0 cpufreq-cpu0' slowed the machine: state 2, 0 at the start" in reason
    assert found(answer(on, on, [on], on)) == ()
    assert found(answer(on, off, None, on)) == ()
    assert found(answer(cooling(-1), cooling(0), None, cooling(-1))) == ()
    for other in ("pwm-fan", "LCD"):
        assert found(answer(cooling(0, other), cooling(3, other))) == ()
    for kind in ("Processor", "cpu-throttle-alert", "devfreq-17000000.gpu", "intel_powerclamp"):
        assert "state 3" in only(answer(cooling(0, kind), cooling(3, kind)))


def test_a_clock_that_drops() -> None:
    fast, slow = clock(policy0=2400), clock(policy0=1000)
    expected = "the clock of policy0 went from 2.40 to 1.00 GHz during the measurement"
    assert found(answer(fast, slow)) == (expected,)
    assert found(answer(fast, fast, [fast, slow, fast])) == (expected,)
    assert found(answer(fast, clock(policy0=2300))) == (), "within 5 %"
    assert only(answer(slow, fast)).startswith("the clock of policy0 went from 1.00 to 2.40")


def test_a_clock_that_idles_is_not_one_that_drops() -> None:
    fast, slow = clock(policy0=2400), clock(policy0=600)
    governor = {"governor": {"policy0": "ondemand"}}
    assert found(answer(fast, fast, None, slow)) == (), "before the warm-up nothing runs"
    # The runs wait for the watcher's first look, and are over at the end.
    idle = answer({**fast, **governor}, slow, [slow, fast, fast])
    assert found(idle) == ()
    idle["watch"][2].update(clock(policy0=1500))
    assert "from 2.40 to 1.50 GHz" in only(idle)
    steady = {"governor": {"policy0": "performance"}}
    assert "from 2.40 to 0.60 GHz" in only(answer({**fast, **steady}, slow))


def test_only_the_clocks_of_measured_cpus_count() -> None:
    before, after = clock(policy0=1800, policy4=2400), clock(policy0=600, policy4=2400)
    assert found(answer(before, after, cpus=[5])) == ()
    assert "policy0" in only(answer(before, after, cpus=[3]))
    assert "policy0" in only(answer(before, after, cpus=[5, 3]))
    assert "policy0" in only(answer(before, after, cpus=None)), "any of them may have been it"


def test_the_clock_that_a_raspberry_pis_firmware_tells() -> None:
    fast, slow = {"pi_clock_hz": 1_800_000_000}, {"pi_clock_hz": 600_000_000}
    reason = only(answer(slow, slow, [slow, fast, slow]))
    assert reason == (
        "the clock of the processor went from 1.80 to 0.60 GHz during the measurement"
    )
    assert found(answer(slow, slow, [slow, fast, fast])) == ()


def test_a_gpus_clock_counts_where_it_computes() -> None:
    states = [{"gpu_clock_hz": hz} for hz in (3e8, 1.02e9, 5.1e8)]
    assert found(answer(watch=states)) == ()
    job = {"runtime": "onnxruntime", "provider": "CUDAExecutionProvider"}
    assert "the clock of the GPU went from 1.02 to 0.51" in only(answer(watch=states, job=job))


def test_a_gpu_that_is_held_back() -> None:
    def gpu(reasons: str) -> dict[str, Any]:
        return {"gpu_state": {"clock_mhz": 1800.0, "throttle_reasons": reasons}}

    free, capped = gpu("0x0000000000000001"), gpu("0x0000000000000024")
    job = {"runtime": "tensorrt", "provider": None}
    assert found(answer(watch=[free, free, free], job=job)) == (), "idle is no throttling"
    assert found(answer(watch=[free, free, capped])) == ()
    reasons = found(answer(watch=[free, free, capped], job=job))
    assert reasons == (
        "the GPU was held back (software power cap) in 1 of 2 looks",
        "the GPU was held back (software thermal slowdown) in 1 of 2 looks",
    )


@pytest.mark.parametrize(
    ("key", "unit", "text"),
    [("waited_for_cpu_ns", 1e9, "waited 0.20 s for it"), ("stolen_ticks", 100, "for 0.20 s")],
)
def test_time_that_others_had_the_cpu(key: str, unit: float, text: str) -> None:
    """5 % of 2.08 s are 0.104 s."""

    def after(seconds: float) -> dict[str, Any]:
        return answer({key: 7}, {key: 7 + seconds * unit}, start={key: 0})

    assert text in only(after(0.2))
    assert "a measurement of 2.08 s" in only(after(0.11))
    assert found(after(0.09)) == ()
    # The watcher is another process.
    assert found(answer({key: 7}, {key: 7}, [{key: 9e9}])) == ()


def test_swapping() -> None:
    def pages(read: int, written: int) -> dict[str, Any]:
        return {"swap_pages": {"in": read, "out": written}}

    reason = only(answer(pages(5, 9), pages(1005, 29)))
    assert reason.endswith("1000 pages in, 20 out")
    assert found(answer(pages(5, 9), pages(105, 29), start=pages(0, 0))) == ()


def test_a_quota_that_holds_back() -> None:
    def held(periods: int, time_us: int) -> dict[str, Any]:
        return {"cgroup_throttled": {"periods": periods, "time_us": time_us}}

    reason = only(answer(held(4, 10), held(6, 250_010)))
    assert "in 2 periods, for 0.25 s in all" in reason
    assert found(answer(held(4, 10), held(4, 10), start=held(0, 0))) == ()


def test_a_power_mode_that_changes() -> None:
    maxn, low = ({"power_mode": {"name": n, "id": i}} for n, i in (("MAXN", 0), ("15W", 2)))
    watched = [{"power_mode": None}] * 2  # too slow to be asked then
    assert only(answer(maxn, low, watched)) == "the power mode went from MAXN (0) to 15W (2)"
    assert found(answer(maxn, maxn, watched, maxn)) == ()


def noisy(drift: float, blocks: int = 40) -> np.ndarray:
    noise = 0.01 * np.random.default_rng(0).standard_normal(blocks)
    return 2e6 * (1 + drift * np.linspace(0, 1, blocks) + noise)


def test_a_drift() -> None:
    (reason,) = taints(answer(), noisy(0.12))
    assert reason.startswith("the times drifted: 'net' took 2.0")
    assert "ms in the first fifth of the blocks and 2.2" in reason
    (falling,) = taints(answer(), noisy(-0.12))
    assert "(-" in falling
    assert taints(answer(), noisy(0.0)) == ()
    assert taints(answer(), noisy(0.04)) == (), "too little to matter, though it is no chance"
    # A slow phase at an end is a difference, and no drift.
    late = noisy(0.0)
    late[-8:-3] *= 1.2
    assert taints(answer(), late) == ()


def test_differences_that_may_be_chance_are_no_drift() -> None:
    wild = np.random.default_rng(0).lognormal(0, 0.5, (400, 20))
    tainted = sum(bool(taints(answer(), row)) for row in wild)
    assert tainted <= 4  # of 400 with p < 0.001 each; more than 4 have a chance below 1e-4


def test_several_reasons_are_all_told() -> None:
    before = {**clock(policy0=2400), "waited_for_cpu_ns": 0}
    after = {**clock(policy0=1000), "waited_for_cpu_ns": 1e9}
    assert len(taints(answer(before, after), noisy(0.2))) == 3


# Real measurements.

SPIN = "while True: pass"


def measured(
    model: Path, options: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]
) -> tuple[str, ...]:
    job = {"models": [{"name": "net", "path": str(model)}], **QUICK, **options}
    job |= {"energy_s": 0, "lock": None}
    with LocalDevice() as device:
        got = device.run_probe(job, time_limit_s=120, report=report)
    result = result_from_answer("local", {"net": model}, ProfileOptions(), got)
    assert result.to_dict()["tainted"] == list(result.tainted)
    return result.tainted


def ignore(line: Mapping[str, Any]) -> None:
    pass


@pytest.fixture
def busy() -> Iterator[Callable[[int], None]]:
    """Return a function that keeps a CPU busy with two programs until the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(cpu: int) -> None:
        pin = f"import os; os.sched_setaffinity(0, [{cpu}])\n"
        started.extend(subprocess.Popen([sys.executable, "-c", pin + SPIN]) for _ in range(2))

    yield start
    for process in started:
        process.kill()
        process.wait()


def share_waited(cpu: int) -> float:
    """Share of the time that a busy thread does not get this CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        start, used = time.perf_counter(), time.thread_time()
        while time.perf_counter() < start + 0.5:
            pass
        return 1 - (time.thread_time() - used) / (time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs schedstat")
def test_a_busy_loop_on_the_measured_cpu_is_seen(
    conv_model: ConvModel, busy: Callable[[int], None]
) -> None:
    cpu = max(os.sched_getaffinity(0))
    options = {"pin": [cpu], "min_time_s": 0.3}

    def disturbed() -> bool:
        reasons = measured(conv_model(8), options, ignore)
        return any("other programs held the CPU" in reason for reason in reasons)

    quiet = not all(disturbed() for _ in range(3))
    if not quiet and share_waited(cpu) < 0.02:
        pytest.fail("a measurement on a quiet CPU was said to be disturbed")
    busy(cpu)
    assert disturbed()
    if not quiet:
        pytest.skip("this CPU was busy before; what a quiet one looks like could not be seen")


def test_a_clock_that_drops_while_it_is_measured_is_seen(
    conv_model: ConvModel, tmp_path: Path
) -> None:
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    current = policy / "scaling_cur_freq"

    def drop(line: Mapping[str, Any]) -> None:
        if line["stage"] == "measure":  # told after the first blocks
            current.write_text("1000000\n")

    def clocks(report: Callable[[Mapping[str, Any]], None], seconds: float) -> list[str]:
        current.write_text("2400000\n")
        options = {"sysroot": str(tmp_path), "min_time_s": seconds}
        reasons = measured(conv_model(8), options, report)
        return [reason for reason in reasons if "clock" in reason]

    assert clocks(ignore, 0.3) == []
    # A busy machine may read the line that it is told when a short measurement is over.
    found = next(filter(None, (clocks(drop, seconds) for seconds in (0.3, 1, 4))), [])
    assert found == ["the clock of policy0 went from 2.40 to 1.00 GHz during the measurement"]
