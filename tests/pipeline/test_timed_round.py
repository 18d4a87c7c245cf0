"""Budgets of time from the recipe on, on a device that is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeDevice, fake_devices
from stopping import StopAt, Stopped

from prune2deploy import progress
from prune2deploy.channels import Plan
from prune2deploy.methods import METHODS
from prune2deploy.pipeline import pruning, timed_round
from prune2deploy.pipeline.inputs import open_inputs
from prune2deploy.pipeline.pruning import NOWHERE, Checkpoints, Pruned, prune
from prune2deploy.recipe import parse_recipe

RECIPE = """
model: {source: "SOURCE", input: SHAPE}
data: {source: digits, normalize: none, val: 0.2}
pretrain: {epochs: 1, lr: 0.1}
prune: {method: l1, budget: {speedup: 1.6}, recalibrate: 0}
finetune: {epochs: 1, lr: 0.1}
"""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDevice:
    device = FakeDevice(step=4)
    devices = fake_devices(monkeypatch, tmp_path / "cache", device)
    monkeypatch.setattr(timed_round, "load_devices", lambda: devices.settings)
    return device


def pruned(*overrides: str, checkpoints: Checkpoints = NOWHERE) -> Pruned:
    text = RECIPE.replace("SOURCE", "digits:convnet").replace("SHAPE", "[1, 8, 8]")
    recipe = parse_recipe(text, Path("r.yaml"), overrides)
    inputs = open_inputs(recipe)
    torch.manual_seed(1)
    return prune(recipe, inputs, inputs.model.eval(), checkpoints)


def used(plan: Plan) -> float:
    note = next(note for note in plan.notes if note.startswith("Time on local"))
    return float(note.split("% used")[0].split("(")[-1]) / 100


def test_two_rounds_end_at_the_time_of_one(device: FakeDevice) -> None:
    rounds = "prune.schedule={kind: iterative, rounds: 2, finetune_epochs: 0}"
    found = pruned(rounds)
    assert used(found.plan) <= 1
    original, last = device.profiled[0], device.profiled[-1]
    assert last * 1.6 <= original * 1.005
    # The first round went half of the way: to the square root.
    halfway = [us for us in device.profiled if 1.1 < original / us < 1.45]
    assert halfway


def test_limits_are_shares_of_the_original(device: FakeDevice) -> None:
    found = pruned("prune.budget={speedup: 1.1, params: 0.4}")
    assert found.graph is not None
    cost = found.graph.cost.params
    assert cost(found.graph.counts(found.plan)) <= 0.4 * cost(found.graph.full)
    assert used(found.plan) < 0.95


@pytest.mark.parametrize(
    "options",
    [
        "method: eagleeye, candidates: 4",
        "method: sep, updates: 2, schemes: 2, train: {epochs: 1, lr: 0.05}",
    ],
    ids=["eagleeye", "sep"],
)
def test_methods_that_distribute_a_budget_do_so_for_a_time(
    device: FakeDevice, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, ...]] = []
    kind = METHODS[options.split()[1].rstrip(",")]
    allocate = kind.allocate

    def noting(self: Any, context: Any, scores: Any, choice: Any) -> Any:
        counts = allocate(self, context, scores, choice)
        tried.append(tuple(counts.tolist()))
        return counts

    monkeypatch.setattr(kind, "allocate", noting)
    more = "images: 64, batch_size: 32"
    found = pruned(f"prune={{{options}, {more}, budget: {{speedup: 1.3}}, recalibrate: 0}}")
    assert used(found.plan) <= 1
    assert found.graph is not None
    assert tuple(found.graph.counts(found.plan).tolist()) in tried


def test_a_stopped_run_keeps_the_widths_of_its_rounds(
    device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring again would give other widths, and the training stands for these."""
    measured = []

    def noting(*args: Any) -> Plan:
        measured.append(args[-1])
        return timed_round.timed_plan(*args)

    monkeypatch.setattr(pruning, "timed_plan", noting)
    rounds = "prune.schedule={kind: iterative, rounds: 2, finetune_epochs: 1}"
    checkpoints = Checkpoints(tmp_path / "work", "same", every_s=0)
    with pytest.raises(Stopped), progress.use(StopAt(5, "Training between rounds")):
        pruned(rounds, checkpoints=checkpoints)
    assert measured == [1]
    stands = checkpoints.named("round 1")
    assert stands is not None
    before = stands.read()
    device.step = 2
    found = pruned(rounds, checkpoints=checkpoints)
    assert measured == [1, 2]
    assert before is not None
    assert before["step"] == 4
    kept = checkpoints.named("round 1 plan")
    assert kept is not None
    first = kept.read()
    assert first is not None
    halves = {c.group: c.kept for c in Plan.from_json(first["plan"]).choices}
    assert all(choice.kept <= halves[choice.group] for choice in found.plan.choices)
