"""A run that is killed again and again ends with the files of one that was not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prune2deploy.errors import Prune2DeployError
from prune2deploy.pipeline import RunOptions, run_recipe, run_until
from prune2deploy.recipe import parse_recipe

RECIPE = """
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none, val: 0.1}
pretrain: {epochs: 3, lr: 0.1, precision: fp32}
prune:
  method: ccprune
  budget: {macs: 0.5}
  train: {epochs: 2, lr: 0.05, precision: fp32}
  schedule: {kind: iterative, rounds: 2, finetune_epochs: 1}
finetune:
  epochs: 3
  lr: 0.05
  precision: fp32
  distill: {from: original}
  early_stop: {patience: 2}
export: {precision: [fp32, int8]}
profile: {min_time_s: 0.2, retries: 0}
"""
# latency/ and what is made from it differ from measurement to measurement.
SAME = (
    "original.safetensors",
    "cut.safetensors",
    "pruned.safetensors",
    "plan.json",
    "original.onnx",
    "pruned.onnx",
    "pruned.int8.onnx",
)
STAGES = ("pretrain", "prune", "finetune", "export", "precisions", "profile", "report")
RUN = "from prune2deploy.cli import main; main()"


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    recipe = folder.parent / "small.yaml"
    recipe.write_text(RECIPE)
    args = ["run", str(recipe), "--output", str(folder), "--checkpoint-every", "0.05", *more]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(folder: Path, *more: str) -> str:
    process = start(folder, *more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_work(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the process is past its start: the log grows."""
    log = folder / "run.log"
    before = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or log.stat().st_size == before):
        time.sleep(0.01)


def killed(folder: Path, seconds: float) -> bool:
    """Run for so long after the start, then kill -9; False: it was finished before that."""
    process = start(folder)
    wait_for_work(folder, process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SAME}


def figures(folder: Path) -> list[object]:
    metrics = json.loads((folder / "metrics.json").read_text())
    keys = ("stages", "before", "after", "precisions", "pruning", "data", "model")
    return [metrics[key] for key in keys]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed. Alone in its folder, so that nobody takes stages from it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(folder)
    assert not (folder / "work").exists()
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the recipe wants it, and as it was afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_three_kills(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for seconds in (0.3, 1.0):
        killed(folder, seconds)
    assert killed_in(folder, STAGES[STAGES.index("pretrain") + 1], 0.1)
    output = finish(folder)
    assert "pretrain: kept" in output
    assert hashes(folder) == hashes(whole)
    assert figures(folder) == figures(whole)
    assert not list(folder.rglob("*.tmp"))


def killed_in(folder: Path, stage: str, seconds: float) -> bool:
    """Kill -9 so long after the stage (or a later one) began; False: the run was over by then."""
    process = start(folder)
    log = folder / "run.log"
    before = log.stat().st_size if log.exists() else 0
    later = STAGES[STAGES.index(stage) :]
    while process.poll() is None:
        text = log.read_text()[before:] if log.exists() else ""
        if any(f"Stage: {name}\n" in text for name in later):
            break
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


@pytest.mark.slow
def test_25_kills_at_random_moments(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    took = json.loads((whole / "metrics.json").read_text())["seconds"]
    kills: list[str] = []
    for number in range(3):
        folder = tmp_path / f"alone-{number}" / "run"
        folder.parent.mkdir()
        for stage in STAGES:
            for _ in range(2):
                if killed_in(folder, stage, rng.uniform(0, 1.2 * took.get(stage, 0.1))):
                    kills.append(stage)
        finish(folder)
        assert hashes(folder) == hashes(whole)
        assert figures(folder) == figures(whole)
        assert not list(folder.rglob("*.tmp"))
    assert len(kills) >= 25
    assert set(kills) >= {"pretrain", "prune", "finetune", "export", "precisions", "profile"}


def test_a_damaged_file_is_made_again(whole: Path, tmp_path: Path, one_thread: None) -> None:
    folder, said = tmp_path / "run", list[str]()
    recipe = parse_recipe(RECIPE, tmp_path / "small.yaml")
    run_until(recipe, "finetune", folder)
    weights = folder / "pruned.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    record = folder / "stages" / "prune.json"
    record.write_bytes(record.read_bytes()[:-20])
    run_recipe(recipe, folder, RunOptions(say=said.append))
    output = "\n".join(said)
    assert "prune: run, because its record prune.json is damaged" in output
    assert "finetune: run, because its file pruned.safetensors is not as it was" in output
    assert "pretrain: kept" in output
    assert hashes(folder) == hashes(whole)


@pytest.mark.slow
def test_a_full_disk_costs_what_could_not_be_written(
    whole: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each kind of file: a training's state, weights, a plan, a record, ONNX, figures."""
    left = ["prune train.state", "plan.json", "prune.json", "cut.safetensors", "pruned.onnx"]
    left += ["pruned.int8.onnx", "local.json", "metrics.json"]
    replace = os.replace

    def full(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name in left:
            left.remove(Path(target).name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    recipe = parse_recipe(RECIPE, tmp_path / "small.yaml")
    failures: list[str] = []
    while len(failures) < 12:
        try:
            run_recipe(recipe, tmp_path / "run", RunOptions(checkpoint_s=0.05))
            break
        except (OSError, Prune2DeployError) as err:
            failures.append(str(err))
    assert left == []
    assert len(failures) == 8
    assert all("No space left on device" in failure for failure in failures)
    assert hashes(tmp_path / "run") == hashes(whole)
    assert figures(tmp_path / "run") == figures(whole)
    assert not [path for end in ("tmp", "part") for path in tmp_path.rglob(f"*.{end}")]


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(folder)
    wait_for_work(folder, first)
    second = start(folder)
    output, _ = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert f"Another run is at work in {folder} (process {first.pid})" in output
    assert "Traceback" not in output
