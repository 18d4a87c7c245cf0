"""Two processes train together on this CPU: as one would, and they survive a kill."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="needs torch.distributed"
)

# Without batch norm, whose statistics are of each process's part of the batch.
MODEL = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
RECIPE = """
threads: 1
model: {source: "net.py:net", input: [1, 8, 8]}
data: {source: digits, normalize: none, batch_size: 50}
pretrain: {epochs: 3, lr: 0.05, precision: fp32}
train: {accelerator: cpu, devices: DEVICES}
prune:
  method: oicsr
  budget: {macs: 0.5}
  train: {epochs: 1, lr: 0.05, precision: fp32}
finetune: {epochs: 2, lr: 0.05, precision: fp32}
profile: {min_time_s: 0.05, retries: 0}
"""
RUN = "from prune2deploy.cli import main; main()"
_OURS = ("LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR", "WORLD_SIZE", "NODE_RANK", "RANK")


def command(folder: Path, devices: int) -> list[str]:
    (folder / "net.py").write_text(MODEL)
    # A file: the other process is started with the same one.
    (folder / "run.py").write_text(RUN)
    (folder / "small.yaml").write_text(RECIPE.replace("DEVICES", str(devices)))
    return [str(folder / "run.py"), "run", str(folder / "small.yaml"), "--output", "run"]


def start(folder: Path, args: list[str]) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name not in _OURS}
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, args: list[str]) -> str:
    process = start(folder, args)
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def losses(folder: Path) -> list[float]:
    log = (folder / "run" / "run.log").read_text()
    return [float(found) for found in re.findall(r"epoch \d+, \d+ steps, loss ([0-9.]+)", log)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    output = finish(folder, command(folder, 2))
    assert output.count("Everything is in") == 1, output
    return folder


def test_two_train_as_one(two: Path, tmp_path: Path) -> None:
    finish(tmp_path, command(tmp_path, 1))
    assert losses(two) == pytest.approx(losses(tmp_path), abs=1e-3)
    assert len(losses(two)) == 6  # both epochs of each training, told by one process only


def test_a_kill_in_the_middle_changes_nothing(two: Path, tmp_path: Path) -> None:
    args = [*command(tmp_path, 2), "--checkpoint-every", "0"]
    process = start(tmp_path, args)
    log = tmp_path / "run" / "run.log"
    while process.poll() is None and not (log.exists() and "epoch 2" in log.read_text()):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(tmp_path, args)
    assert "Training goes on after step" in log.read_text()
    for name in ("original.safetensors", "pruned.safetensors"):
        whole, again = (load_file(folder / "run" / name) for folder in (two, tmp_path))
        assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
def test_torchrun_starts_both(two: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-port", str(port)]
    finish(tmp_path, [*launch, *command(tmp_path, 2)])
    assert losses(tmp_path) == losses(two)
