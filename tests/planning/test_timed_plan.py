"""Plans for a time from Python, on a device that is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeDevice, fake_devices
from plain_networks import SIZE, in_a_row, write_onnx

import prune2deploy as p2d
from prune2deploy.channels import Graph
from prune2deploy.devices import LocalSettings
from prune2deploy.errors import BudgetError, DeviceError, ExportError, MethodError
from prune2deploy.planning.timed import devices as timed_devices


@pytest.fixture
def graph() -> Graph:
    return p2d.trace(in_a_row(48, 64, 48), torch.randn(1, 3, SIZE, SIZE))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDevice:
    device = FakeDevice(step=8)
    devices = fake_devices(monkeypatch, tmp_path / "cache", device)
    known = {**devices.settings, "orin": LocalSettings(runtime="tensorrt")}
    monkeypatch.setattr(timed_devices, "load_devices", lambda: known)
    return device


def test_the_cut_network_takes_the_time(graph: Graph, device: FakeDevice, tmp_path: Path) -> None:
    plan = p2d.plan_for_time(graph, "l1", speedup=1.8, export=write_onnx)
    write_onnx(graph.model, tmp_path / "whole.onnx")
    write_onnx(p2d.cut(graph.model, plan), tmp_path / "small.onnx")
    whole, small = (device.network_us(tmp_path / f"{name}.onnx") for name in ("whole", "small"))
    assert 1.8 <= whole / small < 1.8 * 1.12
    assert plan.notes[0].startswith("Time on local: predicted")
    assert all(choice.kept % 8 == 0 for choice in plan.choices)


def test_limits_and_widths_are_as_asked(graph: Graph, device: FakeDevice) -> None:
    limits = {"params": 0.3, "size_mb": 1.0}
    plan = p2d.plan_for_time(
        graph, "l2", speedup=1.1, limits=limits, round_to=16, export=write_onnx
    )
    kept = graph.counts(plan)
    assert graph.cost.params(kept) <= 0.3 * graph.cost.params(graph.full)
    assert (kept % 16 == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({}, BudgetError, "Give one of latency_ms and speedup"),
        ({"speedup": 2, "latency_ms": 3}, BudgetError, "Give one of latency_ms and speedup"),
        ({"speedup": 0.5}, BudgetError, "speedup is 0.5; give more than 1"),
        ({"speedup": 2, "limits": {"weights": 0.5}}, BudgetError, "known: macs, params, size_mb"),
        (
            {"speedup": 2, "limits": {"macs": 2}},
            BudgetError,
            "macs is 2; give more than 0 and less",
        ),
        ({"speedup": 2, "on": "pi5"}, DeviceError, "on names 'pi5', and no such device"),
        ({"speedup": 2, "on": ["orin"]}, DeviceError, "whose runtime is tensorrt"),
        ({"speedup": 2, "on": ["local", "local"]}, BudgetError, "each once; found local, local"),
        ({"speedup": 2, "round_to": 0}, BudgetError, "round_to is 0"),
        ({"speedup": 2, "method": "han"}, BudgetError, "han keeps single weights"),
        ({"speedup": 2, "method": "l7"}, MethodError, "no method 'l7'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(
    graph: Graph, device: FakeDevice, arguments: dict[str, Any], error: type, told: str
) -> None:
    with pytest.raises(error, match=told):
        p2d.plan_for_time(graph, **arguments)
    assert not device.jobs


def test_what_is_frozen_is_told_where_the_time_is_out_of_reach(device: FakeDevice) -> None:
    model, image = in_a_row(48, 64, 48), torch.randn(1, 3, SIZE, SIZE)
    with pytest.raises(BudgetError, match=r"cannot be reached: .* channels stay \(0, 2\) because"):
        p2d.plan_for_time(p2d.trace(model, image, ["2"]), speedup=50.0, export=write_onnx)
    measured = len(device.jobs)
    with pytest.raises(BudgetError, match="everything is frozen"):
        p2d.plan_for_time(p2d.trace(model, image, ["*"]), speedup=50.0, export=write_onnx)
    assert len(device.jobs) == measured


def test_other_inputs_need_an_exporter(device: FakeDevice) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.last = torch.nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.conv(x + y))
            return result

    graph = p2d.trace(Two(), (torch.randn(1, 3, 6, 6), torch.randn(1, 3, 6, 6)))
    with pytest.raises(ExportError, match="Give export"):
        p2d.plan_for_time(graph, speedup=1.5)


def test_a_time_in_a_budget_of_shares_points_here(graph: Graph) -> None:
    with pytest.raises(BudgetError, match=r"For a time, prune2deploy\.plan_for_time measures"):
        p2d.plan(graph, budget={"speedup": 2.0})
