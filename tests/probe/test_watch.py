"""The process that watches while the clock runs, and the whole probe on fake machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_machines import CPU, jetson_orin_nano, raspberry_pi_5, write, x86_box
from tiny_onnx import QUICK, ConvModel

from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.probe.watch import INTERVAL_S, SELDOM_S, interval, spare_cpus

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.pyz"
    path.write_bytes(probe_bytes())
    return path


def start(probe: Path, *arguments: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, probe, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        pass_fds=fds,
    )


def send(process: subprocess.Popen[str], job: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()


def answer_of(process: subprocess.Popen[str], job: dict[str, Any]) -> dict[str, Any]:
    with process:
        send(process, job)
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.read())
    return answer


def wait_until(done: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = done()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_spare_cpus_are_on_other_cores_where_possible(tmp_path: Path) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    write(tmp_path, {f"{CPU}/cpu{n}/topology/thread_siblings_list": s for n, s in siblings.items()})
    assert spare_cpus([0, 1, 2, 3], [1], tmp_path) == [0, 2]
    assert spare_cpus([0, 1, 2, 3], [0, 1], tmp_path) == [2, 3]
    assert spare_cpus([1], [1], tmp_path) == []
    assert spare_cpus([0, 1], None, tmp_path) == [], "where the threads run is not known"
    assert spare_cpus(None, None, tmp_path) == []


def test_it_looks_seldom_where_every_cpu_is_measured() -> None:
    assert interval(2, [0, 1, 2, 3], [2, 3]) == INTERVAL_S
    assert interval(2, [0, 1], []) == SELDOM_S
    assert interval(1, [0, 1], []) == INTERVAL_S, "nothing is pinned, one CPU is free"


def test_the_watcher_records_until_its_input_ends(probe: Path, tmp_path: Path) -> None:
    looks = tmp_path / "looks"
    write(tmp_path, {"usr/bin/vcgencmd": f"#!/bin/sh\necho 'temp=50.5' | tee -a {looks}\n"})
    ready, theirs = os.pipe()
    settings = {"sysroot": str(tmp_path), "process": "self", "skip": ["gpu_state"]}
    settings |= {"cpus": [], "interval_s": 0.02, "ready": theirs}
    with start(probe, "--watch", fds=(theirs,)) as process:
        os.close(theirs)
        send(process, settings)
        assert os.read(ready, 1) == b"", "the end of this pipe says that the first look is over"
        os.close(ready)
        # Four questions a look.
        wait_until(lambda: len(looks.read_text().splitlines()) > 12)
        output, _ = process.communicate(timeout=LIMIT_S)
    records = json.loads(output)["watch"]
    times = [record["at_s"] for record in records]
    assert len(times) >= 3
    assert times == sorted(times)
    assert 0 <= times[0] < times[1]
    assert {record["pi_temperature_c"] for record in records} == {50.5}


def watcher_of(pid: int) -> int | None:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and "--watch" in (path.parent / "cmdline").read_text().split("\0"):
                return int(path.parent.name)
        except OSError:  # it has just ended
            continue
    return None


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_watcher_does_not_outlive_the_probe(
    probe: Path, conv_model: ConvModel, how: signal.Signals
) -> None:
    job = {"models": [{"name": "m", "path": str(conv_model(2))}], "lock": None, **QUICK}
    with start(probe) as process:
        send(process, {**job, "min_time_s": 600})
        watcher = wait_until(lambda: watcher_of(process.pid))
        process.send_signal(how)
        process.wait(LIMIT_S)
        wait_until(lambda: ended(watcher))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(raspberry_pi_5, "raspberry_pi"), (jetson_orin_nano, "jetson"), (x86_box, "x86")],
)
def test_facts_of_a_fake_machine(
    probe: Path, tmp_path: Path, make: Callable[[Path], Path], kind: str
) -> None:
    answer = answer_of(start(probe), {"ask": "facts", "sysroot": str(make(tmp_path))})
    assert answer["status"] == "ok"
    assert answer["machine"]["kind"] == kind
    assert answer["state"]["pi_throttled"] == (0x50005 if kind == "raspberry_pi" else None)


def test_a_measurement_on_a_fake_jetson(probe: Path, conv_model: ConvModel, tmp_path: Path) -> None:
    models = [{"name": f"m{n}", "path": str(conv_model(n))} for n in (2, 4)]
    job = {"models": models, "lock": None, **QUICK, "energy_s": 0.05}
    root = jetson_orin_nano(tmp_path / "jetson")
    answer = answer_of(start(probe), {**job, "sysroot": str(root)})
    assert answer["status"] == "ok"
    assert answer["machine"]["jetpack"] == "6.2"
    for moment in ("start", "warm", "end"):
        assert answer["state"][moment]["power_mode"] == {"name": "MAXN_SUPER", "id": 2}
    watched = answer["watch"]
    assert [record["overcurrent_count"] for record in watched] == [{"oc1": 0, "oc3": 41}] * len(
        watched
    )
    assert watched[0]["at_s"] >= 0
    assert watched[0]["power_mode"] is None, "too slow to be asked while the clock runs"
    for model in answer["models"]:
        energy = model["energy"]
        assert energy["source"] == "ina3221"
        assert energy["joules"] == pytest.approx(6.0 * energy["time_s"])
        assert energy["joules_per_run"] == pytest.approx(energy["joules"] / energy["runs"])
        assert energy["net_joules_per_run"] == pytest.approx(0, abs=1e-9)


def test_no_source_of_power_is_no_energy(
    probe: Path, conv_model: ConvModel, tmp_path: Path
) -> None:
    job = {"models": [{"name": "m", "path": str(conv_model(2))}], "lock": None, **QUICK}
    answer = answer_of(start(probe), {**job, "sysroot": str(tmp_path)})
    assert answer["status"] == "ok"
    assert answer["models"][0]["energy"] is None
