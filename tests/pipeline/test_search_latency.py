"""Searches in accuracy and latency, on a device that is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_device import FakeDevice, fake_devices

from prune2deploy.devices import Devices
from prune2deploy.errors import BudgetError
from prune2deploy.pipeline import deploy, run_until
from prune2deploy.pipeline.search import costs, point, starts
from prune2deploy.recipe import parse_recipe
from prune2deploy.search import SearchRecord, read_record

pytest.importorskip("optuna")

RECIPE = """
name: small
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none, val: 0.2}
pretrain: {epochs: 1, lr: 0.1, precision: fp32}
prune:
  method: l1
  BUDGET
  search: {objectives: [accuracy, latency], trials: 5, images: 60, recalibrate: 2SEARCH}
"""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDevice:
    device = FakeDevice(step=8, strain=0.2)
    devices: Devices = fake_devices(monkeypatch, tmp_path / "cache", device).settings
    monkeypatch.setattr(starts, "_LEVELS", 2)
    for room in (deploy, costs, point):
        monkeypatch.setattr(room, "load_devices", lambda: devices)
    return device


def searched(folder: Path, budget: str = "", search: str = "") -> tuple[SearchRecord, list[str]]:
    """The record, and the notes of the plan that was made."""
    text = RECIPE.replace("BUDGET", budget).replace("SEARCH", f", {search}" if search else "")
    done = run_until(parse_recipe(text, "small.yaml"), "prune", folder)
    plan = json.loads((done / "plan.json").read_text())
    return read_record(done / "search.json"), plan["notes"]


def test_times_are_predicted_from_the_devices_table(device: FakeDevice, tmp_path: Path) -> None:
    record, notes = searched(tmp_path / "run")
    assert record.cost.name == "latency"
    assert record.cost.unit == "ms"
    assert not record.cost.measured
    assert len(device.profiled) == 1  # the original alone; whatever else is a sum of its layers
    assert record.original.cost == pytest.approx(device.profiled[0] / 1000, rel=0.02)
    assert all(one.cost < record.original.cost for one in record.front[:-1])
    assert any("the knee of the front" in note for note in notes)


def test_every_network_is_measured_where_that_is_asked_for(
    device: FakeDevice, tmp_path: Path
) -> None:
    record, _ = searched(tmp_path / "run", search="measure: true")
    assert record.cost.measured
    assert len(device.profiled) >= 1 + len({one.cost for one in record.tried})
    true = [us / 1000 for us in device.profiled]
    for one in record.front:
        assert min(abs(one.cost / ms - 1) for ms in true) < 0.02


def test_a_budget_of_time_takes_a_point_that_was_measured_within_it(
    device: FakeDevice, tmp_path: Path
) -> None:
    _, notes = searched(tmp_path / "run", "budget: {speedup: 1.5}")
    assert device.profiled[0] / device.profiled[-1] >= 1.5
    assert any("measured within speedup: 1.5 on local" in note for note in notes)


def test_a_limit_on_the_file_counts_too(device: FakeDevice, tmp_path: Path) -> None:
    budget: Any = "budget: {speedup: 1.1, size_mb: 0.6}"
    _, notes = searched(tmp_path / "run", budget)
    told = next(note for note in notes if "measured within" in note)
    assert "speedup: 1.1 and size_mb: 0.6" in told
    assert float(told.split("the file ")[1].split()[0]) <= 0.6


def test_a_time_that_no_point_has_is_an_error(device: FakeDevice, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="No point of the front was measured within speedup: 90"):
        searched(tmp_path / "run", "budget: {speedup: 90}")
