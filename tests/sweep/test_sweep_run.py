"""A sweep goes on when a worker dies or a combination fails, and does nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from test_sweep_file import written

from prune2deploy.recipe import Sweep, load_sweep
from prune2deploy.sweep.cluster import Died
from prune2deploy.sweep.run import SweepResult, run_sweep, sweep_folder, unwatched
from prune2deploy.sweep.work import Order, Outcome, carry_out

TEXT = """\
recipe: base.yaml
over:
  prune.method: [l1, fpgm]
  seed: [0]
retries: 1
"""


class HereWorkers:
    """Carries orders out in this process; the first `deaths` of them die first."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.given: list[tuple[str, Order]] = []
        self.done: list[str] = []

    def give(self, name: str, order: Order) -> None:
        self.given.append((name, order))

    def wait(self, seconds: float) -> list[tuple[str, Outcome | Died]]:
        ended: list[tuple[str, Outcome | Died]] = []
        for name, order in self.given:
            if self.deaths:
                self.deaths -= 1
                ended.append((name, Died("killed")))
                continue
            self.done.append(f"{name} {order.until}")
            ended.append((name, carry_out(order, "here")))
        self.given.clear()
        return ended


def cluster_of(workers: HereWorkers) -> Callable[[Sweep], AbstractContextManager[HereWorkers]]:
    @contextmanager
    def opened(sweep: Sweep) -> Iterator[HereWorkers]:
        yield workers

    return opened


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def swept(folder: Path, text: str, workers: HereWorkers) -> SweepResult:
    sweep = load_sweep(written(folder, text))
    output = sweep_folder("small", sweep.combinations, folder / "out")
    return run_sweep(sweep, output, watch=unwatched, cluster_of=cluster_of(workers))


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    workers = HereWorkers(deaths=1)
    result = swept(tmp_path, TEXT, workers)
    assert [row.state for row in result.rows] == ["finished", "finished"]
    assert not result.failed
    document = json.loads((result.folder / "sweep.json").read_text())
    assert len(document["runs"]) == 2
    assert "fpgm" in (result.folder / "sweep.md").read_text()
    # Both have one pretraining, done once and taken by the other.
    record = json.loads((result.folder / "fpgm-seed0/stages/pretrain.json").read_text())
    other = json.loads((result.folder / "l1-seed0/stages/pretrain.json").read_text())
    assert [record["taken_from"], other["taken_from"]].count(None) == 1
    again = HereWorkers(deaths=0)
    assert swept(tmp_path, TEXT, again).rows[0].state == "finished"
    assert again.done == []


def test_a_combination_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    text = TEXT.replace("seed: [0]", "prune.budget: [{macs: 0.5}, {macs: 0.0001}]")
    result = swept(tmp_path, text, HereWorkers(deaths=0))
    states = {row.name: row.state for row in result.rows}
    assert states["l1-macs0.5"] == states["fpgm-macs0.5"] == "finished"
    assert states["l1-macs0.0001"] == states["fpgm-macs0.0001"] == "failed"
    assert len(result.failed) == 2


def test_too_many_deaths_are_a_failure(tmp_path: Path) -> None:
    text = TEXT.replace("[l1, fpgm]", "[l1]")
    result = swept(tmp_path, text, HereWorkers(deaths=9))
    assert [row.state for row in result.rows] == ["failed"]


@pytest.mark.slow
def test_two_workers_of_ray_and_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    text = TEXT.replace("retries: 1", "retries: 3\nparallel: 2\ncpus: 1")
    path = written(tmp_path, text.replace("seed: [0]", "pretrain.epochs: [20]"))
    command = [sys.executable, "-c", "from prune2deploy.cli import main; main()", "sweep"]
    process = subprocess.Popen(
        [*command, str(path), "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    killed = threading.Thread(target=kill_a_worker, args=(tmp_path / "out", process))
    killed.start()
    output, _ = process.communicate(timeout=400)
    killed.join()
    assert process.returncode == 0, output
    document = json.loads((tmp_path / "out/sweep.json").read_text())
    assert {run["state"] for run in document["runs"]} == {"finished"}
    assert "died" in output, output


def kill_a_worker(folder: Path, process: subprocess.Popen[str]) -> None:
    """Kill -9 whoever holds the lock of a run in which a training is at work."""
    while process.poll() is None:
        for log in folder.glob("*/run.log"):
            holder = (log.parent / ".lock").read_text().strip()
            if "Stage: pretrain" in log.read_text() and holder:
                os.kill(int(holder), signal.SIGKILL)
                return
        time.sleep(0.05)
