"""Whole blocks go until the time is met, on a device that is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeDevice, fake_devices
from plain_networks import SIZE, in_a_row, write_onnx
from torch import Tensor

from prune2deploy.channels import Graph, Plan, cut, trace
from prune2deploy.errors import BudgetError
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import METHODS, Context
from prune2deploy.planning.timed.blocks import plan_blocks_for_time
from prune2deploy.planning.timed.target import Goal

BLOCKS = 6


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(in_a_row(32, blocks=BLOCKS), torch.randn(1, 3, SIZE, SIZE))


class Ranked(METHODS["sss"]):  # type: ignore[name-defined,misc]
    """Every second block first."""

    def score_blocks(self, context: Context, blocks: Any) -> Tensor:
        return torch.tensor([3.0, 0.0, 4.0, 1.0, 5.0, 2.0])


@pytest.fixture
def fit(graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(device: FakeDevice, *goals: Goal, **settings: Any) -> Plan:
        devices = fake_devices(monkeypatch, tmp_path / "cache", device)
        return plan_blocks_for_time(
            Context(graph),
            Ranked(Ranked.options(structure="block")),
            goals,
            devices=devices.settings,
            options=ProfileOptions(),
            export=write_onnx,
            **settings,
        )

    return run


def time_without(graph: Graph, plan: Plan, device: FakeDevice, folder: Path) -> float:
    write_onnx(cut(graph.model, plan), folder / "found.onnx")
    return device.network_us(folder / "found.onnx")


ORDER = ("3", "5", "7", "2", "4", "6")
"""Their names in the order of the scores; "2" is the first."""


@pytest.mark.parametrize("strain", [-0.3, 0.0, 0.6])
@pytest.mark.parametrize("speedup", [1.1, 1.6, 2.5])
def test_the_fewest_blocks_go_without_which_the_time_holds(
    fit: Any, graph: Graph, tmp_path: Path, speedup: float, strain: float
) -> None:
    device = FakeDevice(strain=strain)
    found = fit(device, Goal("local", speedup=speedup))
    gone = len(found.blocks)
    assert set(found.blocks) == set(ORDER[:gone]), "by the order of their scores"
    original = device.profiled[0]
    assert time_without(graph, found, device, tmp_path) <= original / speedup
    fewer = Plan({}, {}, blocks=ORDER[: gone - 1])
    assert time_without(graph, fewer, device, tmp_path) > original / speedup * 0.99
    assert any("With one block fewer" in note for note in found.notes)


def test_blocks_that_are_not_enough(fit: Any) -> None:
    device = FakeDevice()
    with pytest.raises(BudgetError, match=rf"without all {BLOCKS} blocks.* ms are left, and"):
        fit(device, Goal("local", speedup=50.0))
    # Told early: the original, and the network without all of them.
    assert device.jobs.count("profile") == 2


def test_a_limit_takes_more_blocks_than_the_time(fit: Any, graph: Graph) -> None:
    whole = graph.cost.macs(graph.full)
    found = fit(FakeDevice(), Goal("local", speedup=1.05), limits={"macs": 0.5 * whole})
    left = trace(cut(graph.model, found), graph.inputs)
    assert left.cost.macs(left.full) <= 0.5 * whole
    one_more = trace(cut(graph.model, Plan({}, {}, blocks=found.blocks[:-1])), graph.inputs)
    assert one_more.cost.macs(one_more.full) > 0.5 * whole
    with pytest.raises(BudgetError, match=r"Without all 6 blocks .* params are .* times the limit"):
        fit(FakeDevice(), Goal("local", speedup=1.05), limits={"params": 10.0})


def test_a_time_that_holds_already_takes_no_block(fit: Any) -> None:
    found = fit(FakeDevice(), Goal("local", latency_ms=1e6))
    assert found.blocks == ()
    assert found.notes[0] == "Blocks removed: none."


def test_a_round_that_goes_part_of_the_way_takes_fewer(fit: Any) -> None:
    whole = fit(FakeDevice(), Goal("local", speedup=2.0))
    half = fit(FakeDevice(), Goal("local", speedup=2.0, part=0.5))
    assert 0 < len(half.blocks) < len(whole.blocks)
