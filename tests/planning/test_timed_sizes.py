"""Sizes of files and of memory as limits beside a time, on devices that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import BASE_KB, FakeDevice, fake_devices
from plain_networks import SIZE, in_a_row, write_onnx
from test_timed_budget import Bed

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.errors import BudgetError, DeviceError
from prune2deploy.latency.staircase.memory import peak_activations
from prune2deploy.planning.timed.budget import TimedPlan
from prune2deploy.planning.timed.target import Goal

BASE_MB = BASE_KB * 1024 / 1e6


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(in_a_row(96, 128, 112, 96), torch.randn(1, 3, SIZE, SIZE))


def taken_kb(path: Path) -> float:
    """Weights once more, and something that goes with nothing that is counted."""
    return 2.3 * path.stat().st_size / 1024 + 300


@pytest.fixture
def bed(graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(device: FakeDevice) -> Bed:
        return Bed(graph, fake_devices(monkeypatch, tmp_path / "cache", device))

    return make


def file_mb(here: Bed, found: TimedPlan | None, folder: Path) -> float:
    model = here.graph.model if found is None else cut(here.graph.model, found.plan)
    write_onnx(model, folder / "file.onnx")
    return (folder / "file.onnx").stat().st_size / 1e6


def test_a_file_is_no_larger_than_was_asked(bed: Any, tmp_path: Path) -> None:
    here = bed(FakeDevice(step=8))
    most = 0.4 * file_mb(here, None, tmp_path)
    assert file_mb(here, here.fit(Goal("local", speedup=1.3)), tmp_path) > most
    found = here.fit(Goal("local", speedup=1.3, limits={"size_mb": most}))
    assert 0.9 * most < file_mb(here, found, tmp_path) <= most
    assert found.chosen[0].used < 0.95
    assert f"the file {file_mb(here, found, tmp_path):.4g} of {most:.4g} MB" in str(found.chosen[0])


def test_memory_is_measured_and_corrected(bed: Any, tmp_path: Path) -> None:
    here = bed(FakeDevice(step=8, memory=taken_kb))
    whole = (
        BASE_MB + taken_kb(tmp_path / "file.onnx") * 1.024e-3
        if file_mb(here, None, tmp_path)
        else 0
    )
    most = BASE_MB + 0.5 * (whole - BASE_MB)
    found = here.fit(Goal("local", speedup=1.3, limits={"memory_mb": most}))
    file_mb(here, found, tmp_path)
    taken = taken_kb(tmp_path / "file.onnx") * 1.024e-3
    assert 0.85 * (most - BASE_MB) < taken <= most - BASE_MB
    assert found.chosen[0].most_used == pytest.approx((BASE_MB + taken) / most, rel=1e-3)


def test_what_cannot_be_reached_is_said_with_what_is_there_without_a_network(bed: Any) -> None:
    here = bed(FakeDevice(step=8, memory=taken_kb))
    limits = {"memory_mb": BASE_MB - 1}
    wanted = rf"{BASE_MB - 1:.4g} MB of memory were asked.*{BASE_MB:.4g} MB of it without any net"
    with pytest.raises(BudgetError, match=wanted):
        here.fit(Goal("local", speedup=1.3, limits=limits))
    with pytest.raises(BudgetError, match=r"0.0001 MB of the file were asked for"):
        here.fit(Goal("local", speedup=1.3, limits={"size_mb": 1e-4}))


def test_the_first_round_tells_that_the_last_cannot_be_small_enough(bed: Any) -> None:
    here = bed(FakeDevice(step=8))
    limits = {"size_mb": 1e-4}
    with pytest.raises(BudgetError, match=r"0.0001 MB of the file were asked for"):
        here.fit(Goal("local", speedup=1.3, part=0.1, limits=limits))


def test_a_round_goes_a_part_of_the_way(bed: Any, tmp_path: Path) -> None:
    here = bed(FakeDevice(step=8))
    whole = file_mb(here, None, tmp_path)
    half = here.fit(Goal("local", speedup=1.01, part=0.5, limits={"size_mb": whole / 4}))
    assert 0.4 * whole < file_mb(here, half, tmp_path) <= 0.53 * whole


def test_a_device_that_does_not_tell_is_an_error(bed: Any) -> None:
    with pytest.raises(DeviceError, match="'local' does not tell how much memory"):
        bed(FakeDevice()).fit(Goal("local", speedup=1.3, limits={"memory_mb": 100}))


def test_the_peak_is_that_of_what_lives_at_once(tmp_path: Path) -> None:
    """By hand: the residual's input lives on until the sum."""
    model = in_a_row(6, blocks=1)
    write_onnx(model, tmp_path / "net.onnx")
    graph = trace(model, torch.randn(1, 3, SIZE, SIZE))
    peak = peak_activations(tmp_path / "net.onnx", graph.cost.length, graph.full)
    assert graph.full.tolist() == [6]
    # The sum with both its inputs: three tensors, and each of SIZE² numbers for each channel.
    assert peak(graph.full) == 3 * 6 * SIZE**2 * 4
    assert peak(np.array([2])) == 3 * 2 * SIZE**2 * 4
