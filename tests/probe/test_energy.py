"""Energy per inference, by meters of every kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_machines import SMI_NEW, jetson_orin_nano, raspberry_pi_5, write, x86_box
from worker_threads import start_worker

from prune2deploy.probe import energy
from prune2deploy.probe.energy import counted, energies, energy_of, find_meter, sampled, uses_gpu
from prune2deploy.probe.job import ASKS, COMMON
from prune2deploy.probe.power import ina3221_watts
from prune2deploy.probe.raspberry_pi import pmic_watts

RAPL = "sys/class/powercap/intel-rapl:0"
JOB = {**COMMON, **ASKS["measure"], "models": [{"name": "m", "path": "m.onnx"}]}


def fake_meter(readings: list[tuple[float | None, float]]) -> energy.Meter:
    """A meter that does the work and gives these readings in turn."""
    left = iter(readings)

    def meter(work: Callable[[], None]) -> tuple[float | None, float]:
        work()
        return next(left)

    return meter


def test_energy_per_run_is_told_with_and_without_the_idle_machine() -> None:
    meter = fake_meter([(10.0, 2.0), (30.0, 3.0), (None, 3.0)])
    called = []
    first, second = energy_of([lambda: called.append(1), int], ["a", "b"], "rapl", meter, 0.001)
    assert second is None
    assert first is not None
    assert first["runs"] == len(called) >= 3
    assert (first["source"], first["joules"], first["time_s"]) == ("rapl", 30.0, 3.0)
    assert first["idle_watts"] == 5.0
    assert first["joules_per_run"] * len(called) == pytest.approx(30.0)
    assert first["net_joules_per_run"] * len(called) == pytest.approx(30.0 - 5.0 * 3.0)


def test_threads_of_the_model_before_are_not_counted() -> None:
    workers: list[threading.Thread] = []

    def run() -> None:
        """A model whose worker looks for work for a while after its last run."""
        for worker in workers:
            worker.join()
        workers[:] = [start_worker(0.1)]

    run()
    spinning: list[bool] = []

    def meter(work: Callable[[], None]) -> tuple[float | None, float]:
        spinning.append(any(worker.is_alive() for worker in workers))
        work()
        return 1.0, 1.0

    energy_of([run, int], ["a", "b"], "rapl", meter, 0.001)
    assert spinning == [False, False, False]


@pytest.mark.parametrize("idle", [0.0, None])
def test_a_meter_that_shows_nothing_while_idle_is_not_believed(idle: float | None) -> None:
    assert energy_of([int], ["a"], "rapl", fake_meter([(idle, 2.0)]), 0.001) == [None]


def add(root: Path, microjoules: int, wrap: int = 1 << 62) -> None:
    path = root / RAPL / "energy_uj"
    path.write_text(f"{(int(path.read_text()) + microjoules) % wrap}\n")


def test_rapl_counts_what_the_work_used(tmp_path: Path) -> None:
    meter = counted(x86_box(tmp_path))
    assert meter(lambda: add(tmp_path, 2_500_000))[0] == pytest.approx(2.5)
    (tmp_path / RAPL / "max_energy_range_uj").write_text("5000000\n")
    joules, seconds = meter(lambda: add(tmp_path, 2_500_000, wrap=5_000_000))
    assert joules == pytest.approx(2.5), "from 3.5 J over the end at 5 J to 1 J"
    assert seconds > 0
    assert int((tmp_path / RAPL / "energy_uj").read_text()) == 1_000_000


def test_energies_of_models_by_rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x86_box(tmp_path)
    sleeps: list[float] = []

    def idle(seconds: float) -> None:
        sleeps.append(seconds)
        add(tmp_path, 7)

    monkeypatch.setattr(energy.time, "sleep", idle)
    job = {**JOB, "sysroot": str(tmp_path), "energy_s": 0.01}
    (found,) = energies([lambda: add(tmp_path, 1000)], job, None)
    assert found is not None
    assert found["source"] == "rapl"
    assert found["joules_per_run"] == pytest.approx(0.001)
    assert sleeps == [0.01], "idle no longer than a model runs"
    assert energies([int], {**job, "energy_s": 0}, None) == [None]


def test_power_is_the_mean_of_samples_while_the_work_goes_on() -> None:
    values = iter([2.0, None, 6.0])
    enough = threading.Event()
    readers = set()

    def watts() -> float | None:
        readers.add(threading.current_thread())
        value = next(values, None)
        if value == 6.0:
            enough.set()
        return value

    joules, seconds = sampled(watts, None)(lambda: enough.wait(30) and None)
    assert joules == pytest.approx(4.0 * seconds)
    assert threading.current_thread() not in readers


def test_short_work_has_one_sample_and_a_mute_sensor_none() -> None:
    joules, seconds = sampled(lambda: 3.0, None)(lambda: None)
    assert joules == pytest.approx(3.0 * seconds)
    assert sampled(lambda: None, None)(lambda: None)[0] is None


def test_samples_end_when_the_work_fails() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        sampled(lambda: 1.0, None)(fail)
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("make", "gpu", "source"),
    [
        (raspberry_pi_5, False, "pmic"),
        (jetson_orin_nano, False, "ina3221"),
        (jetson_orin_nano, True, "ina3221"),
        (x86_box, False, "rapl"),
        (x86_box, True, None),  # its nvidia-smi knows no power
        (lambda root: root, False, None),
    ],
)
def test_which_meter_a_machine_has(
    tmp_path: Path, make: Callable[[Path], Path], gpu: bool, source: str | None
) -> None:
    found = find_meter(make(tmp_path), gpu, None)
    assert (found and found[0]) == source


def test_a_discrete_gpu_has_a_meter_of_its_own(tmp_path: Path) -> None:
    root = x86_box(tmp_path)
    write(root, {"usr/bin/nvidia-smi": f"#!/bin/sh\ncat <<'END'\n{SMI_NEW}\nEND\n"})
    found = find_meter(root, True, None)
    assert found is not None
    name, meter = found
    joules, seconds = meter(lambda: None)
    assert name == "nvidia-smi"
    assert joules == pytest.approx(71.25 * seconds)


def test_tegrastats_where_there_are_no_rails(tmp_path: Path) -> None:
    write(tmp_path, {"usr/bin/tegrastats": "#!/bin/sh\necho 'VDD_IN 4000mW/4100mW'\n"})
    found = find_meter(tmp_path, False, None)
    assert found is not None
    assert found[0] == "tegrastats"


def test_watts_of_the_fake_boards(tmp_path: Path) -> None:
    assert pmic_watts(raspberry_pi_5(tmp_path / "pi")) == pytest.approx(0.37 + 0.55 + 1.8)
    assert ina3221_watts(jetson_orin_nano(tmp_path / "jetson")) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("settings", "gpu"),
    [
        ({}, False),
        ({"provider": "CUDAExecutionProvider"}, True),
        ({"provider": "TensorrtExecutionProvider"}, True),
        ({"provider": "XnnpackExecutionProvider"}, False),
        ({"runtime": "tensorrt"}, True),
    ],
)
def test_whether_a_gpu_computes(settings: dict[str, Any], gpu: bool) -> None:
    assert uses_gpu({**JOB, **settings}) is gpu
