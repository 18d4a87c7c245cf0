"""Gates are the network with other parameters, and leave the plain model behind."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from networks import run
from scoring import batches, build_mixed
from torch import Tensor, nn

from prune2deploy.channels import Graph, mask, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods.common.gates import Gates, Layout

Place = Literal["made", "read"]
PLACES: tuple[Place, ...] = ("made", "read")


def gated(graph: Graph, start: Tensor | None = None, place: Place = "made") -> Gates:
    size = Layout(graph, place).size
    first = torch.ones(size) if start is None else start
    return Gates(graph, {"gate": first}, lambda gates: gates.gate, place)


@pytest.mark.parametrize("place", PLACES)
def test_gates_of_one_change_nothing(mixed: Graph, place: Place) -> None:
    before = run(mixed.model, batches(4, 4)[0])
    gates = gated(mixed, place=place)
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), before)
    names = dict(mixed.model.named_parameters())
    assert "prune2deploy_gates.gate" in names
    assert gates.gate.shape == (24,)


@pytest.mark.parametrize("place", PLACES)
def test_gates_of_zero_are_the_masked_network(mixed: Graph, place: Place) -> None:
    masked = mask(mixed.model, mixed.plan([range(3, 10), range(6), range(5)]))
    start = torch.ones(24)
    start[:3] = 0
    start[21:] = 0
    images = batches(4, 4)[0]
    want = run(masked, images)
    gated(mixed, start, place)
    torch.testing.assert_close(run(mixed.model, images), want)


@pytest.mark.parametrize("place", PLACES)
def test_folding_leaves_the_plain_model_with_the_same_numbers(mixed: Graph, place: Place) -> None:
    plain = [name for name, _ in mixed.model.named_parameters()]
    same = {name: mixed.model.get_parameter(name) for name in plain}
    start = torch.rand(24, generator=torch.Generator().manual_seed(0))
    gates = gated(mixed, start, place)
    images = batches(4, 4)[0]
    want = run(mixed.model, images)
    values = gates.fold()
    torch.testing.assert_close(run(mixed.model, images), want, rtol=1e-5, atol=1e-6)
    assert sorted(name for name, _ in mixed.model.named_parameters()) == sorted(plain)
    assert all(mixed.model.get_parameter(name) is p for name, p in same.items())
    assert not mixed.model._forward_hooks
    assert not mixed.model._forward_pre_hooks
    assert [v is not None and len(v) for v in values] == [10, 6, 8]
    torch.testing.assert_close(torch.cat([v for v in values if v is not None]), start)


def test_gates_have_the_gradient_of_the_channel(mixed: Graph) -> None:
    images = batches(4, 4)[0]
    mixed.model.eval()
    gates = gated(mixed)
    mixed.model(images).square().sum().backward()
    assert gates.gate.grad is not None
    step = 1e-3
    with torch.no_grad():
        values = []
        for change in (step, -step):
            gates.gate[4] += change
            values.append(float(mixed.model.double()(images.double()).square().sum()))
            gates.gate[4] -= change
    slope = (values[0] - values[1]) / (2 * step)
    assert float(gates.gate.grad[4]) == pytest.approx(slope, rel=0.02)


def test_one_draw_per_forward_pass_serves_all_parameters() -> None:
    graph = trace(build_mixed(), torch.randn(2, 3, 8, 8))
    draws = []

    def draw(gates: Gates) -> Tensor:
        draws.append(gates.training)
        return gates.gate * (torch.rand(24) if gates.training else 1.0)

    Gates(graph, {"gate": torch.ones(24)}, draw)
    graph.model.train()
    graph.model(batches(4, 4)[0])
    assert draws == [True]
    run(graph.model, batches(4, 4)[0])
    assert draws == [True, False]
    copy.deepcopy(graph.model)  # no graph of the last pass is held


def test_a_sequential_model_can_have_gates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    images = batches(4, 4)[0]
    before = run(model, images)
    gates = gated(trace(model, images))
    torch.testing.assert_close(run(model, images), before)
    gates.fold()
    assert len(model) == 3


def test_a_copy_of_a_gated_model_has_gates_of_its_own(mixed: Graph) -> None:
    gated(mixed)
    images = batches(4, 4)[0]
    want = run(mixed.model, images)
    other = copy.deepcopy(mixed.model)
    with torch.no_grad():
        mixed.model.get_parameter("prune2deploy_gates.gate").zero_()
    torch.testing.assert_close(run(other, images), want)


def test_a_model_without_channels_to_gate_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    graph = trace(model, torch.randn(2, 3, 2, 2))
    with pytest.raises(MethodError, match=r"none can have a gate.*l1"):
        Gates(graph, {}, lambda gates: torch.ones(0))


def test_a_model_that_runs_its_parts_in_a_row_does_not_mind_the_gates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    graph = trace(model, torch.randn(2, 3, 8, 8))
    images = batches(4, 4)[0]
    want = run(model, images)
    gates = gated(graph)
    torch.testing.assert_close(run(model, images), want)
    gates.fold()
    assert len(model) == 3
