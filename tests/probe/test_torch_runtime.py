"""PyTorch as a runtime: exported programs, its threads and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_onnx import QUICK
from torch import nn

from prune2deploy.devices.local import LocalDevice
from prune2deploy.errors import DeviceError


def ignore(line: Mapping[str, Any]) -> None:
    pass


@pytest.fixture
def program(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(network, (torch.randn(1, 3, 32, 32),)), path)
    return path, network


def measured(path: Path, **settings: Any) -> dict[str, Any]:
    job = {"models": [{"name": "net", "path": str(path)}], "runtime": "torch", "lock": None}
    with LocalDevice() as device:
        return device.run_probe({**job, **QUICK, **settings}, time_limit_s=120, report=ignore)


def test_the_output_is_that_of_the_network(program: tuple[Path, nn.Module]) -> None:
    path, network = program
    fact = measured(path, seed=3)["models"][0]["outputs"][0]
    x = np.random.RandomState(3).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x))
    assert fact["shape"] == [1, 8, 30, 30]
    assert fact["mean"] == pytest.approx(expected.double().mean().item(), rel=1e-4)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_its_threads_have_a_cpu_each(program: tuple[Path, nn.Module]) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    answer = measured(program[0], threads=2, pin=[first, second])
    assert answer["cpus"] == [first, second]
    setup = answer["models"][0]["setup"]
    assert (setup["threads"], setup["worker_cpus"]) == (2, [str(second)])


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(DeviceError, match=r"PyTorch cannot load it.*torch\.export\.save"):
        measured(tmp_path / "text.pt2")


def test_what_it_cannot_be_told_is_refused(program: tuple[Path, nn.Module]) -> None:
    with pytest.raises(DeviceError, match="no setting for spinning"):
        measured(program[0], spinning=False)
