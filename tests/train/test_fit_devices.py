"""Training in several processes; each runs the same program, as Lightning Fabric has it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prune2deploy.train import Classification, TrainSettings, fit

PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from prune2deploy.data import open_data
from prune2deploy.train import Classification, TrainSettings, fit

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
)
data = open_data("npz", root=Path(sys.argv[1]), input_shape=(1, 6, 6))
settings = TrainSettings(
    epochs=2, lr=0.1, batch_size=16, precision="fp32", accelerator="cpu", devices=2, strategy="ddp"
)
history = fit(model, Classification(), data, settings)
state = {name: value.double().sum().item() for name, value in model.state_dict().items()}
steps = [epoch.steps for epoch in history.epochs]
result = {"state": state, "steps": steps, "loss": history.epochs[-1].loss}
Path(sys.argv[2], f"{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(result))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_end_with_one_model(corners, tmp_path):
    corners(train=64)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR", "WORLD_SIZE", "NODE_RANK")
    }
    finished = subprocess.run(
        [sys.executable, program, tmp_path / "corners.npz", tmp_path],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    first, second = (json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["state"] == pytest.approx(second["state"])
    # 64 images in batches of 16 over both: four steps, not eight.
    assert first["steps"] == [4, 4]
    assert first["loss"] < 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_brings_the_model_back(net, corners):
    model = net()
    fit(model, Classification(), corners(), TrainSettings(epochs=2, lr=0.1, accelerator="cuda"))
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
