"""BAR."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hooked import USEFUL, USELESS, brightest, half_useless, train_with_hooks
from networks import run
from scoring import batches, make, step

from prune2deploy.channels import Graph
from prune2deploy.methods import Context
from prune2deploy.methods.bar import CAP, alive, areas_of, drawn, multiplier, stretched, tightened


def test_the_numbers_of_the_specification() -> None:
    # methods.md 3.25.
    assert alive(torch.tensor(0.0)).item() == pytest.approx(0.8318, abs=1e-4)
    assert multiplier(torch.tensor(50.0), 0.0, 100.0).item() == pytest.approx(0.5)
    assert tightened(0.25) == pytest.approx(0.0701, abs=1e-4)
    assert tightened(0.5) == pytest.approx(0.5)
    assert (tightened(0.0), tightened(1.0)) == (0.0, pytest.approx(1.0))


def test_the_multiplier_is_held_at_both_ends() -> None:
    found = multiplier(torch.tensor([-5.0, 0.0, 90.0, 100.0, 500.0]), 0.0, 100.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 8.1, CAP, CAP]))


def test_gates_are_above_zero_as_often_as_their_probability_says() -> None:
    u = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    for phi in (-1.0, 0.0, 2.0):
        gates = drawn(torch.tensor(phi), u)
        assert gates.min() >= 0
        assert gates.max() <= 1
        share = (gates > 0).double().mean().item()
        assert share == pytest.approx(alive(torch.tensor(phi)).item(), abs=0.01)


def test_a_gate_by_the_formula() -> None:
    u, phi = 0.3, 0.4
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + phi) / (2 / 3)))
    found = drawn(torch.tensor(phi, dtype=torch.float64), torch.tensor(u, dtype=torch.float64))
    assert found.item() == pytest.approx(s * 1.2 - 0.1)
    assert stretched(torch.tensor([0.05, 0.5, 0.95])).tolist() == pytest.approx([0, 0.5, 1])


def test_areas_are_those_of_the_maps_that_layers_read(mixed: Graph) -> None:
    # The stem's channels are read by inner and depth, and behind depth by side and, pooled to
    # 2 * 2, by hidden; depth itself is read as a map of its own.
    stem, side, hidden = areas_of(mixed)
    assert side == 4
    assert hidden == 1
    assert stem == 64 + 64 + 64 + 4


def test_the_loss_distils_and_weighs_the_volume(mixed: Graph) -> None:
    images = batches(4, 4)[0]
    areas = np.repeat(areas_of(mixed), mixed.full)
    teacher = run(mixed.model, images).double()
    method = make("bar", keep=0.5, penalty=0.01, start=1.0)
    method.attach(mixed)
    (phi,) = method.own_parameters()
    with torch.no_grad():
        phi[:2] = -4.0
    # Half of the way: B = (1.01 + 0.5) / 2 of the whole volume.
    method.after_step(step(number=1, total=2))
    student = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    found = method.whole_loss(torch.tensor(3.0), images, student)
    whole = areas.sum()
    volume, least = whole - 2 * areas[0], (0.5 - 1e-4) * whole
    r = (volume - least) / (0.755 * whole - least)
    factor = 1e10 if r >= 1 else r**2 / (1 - r)
    chances = 1 / (1 + np.exp(-(phi.detach().double().numpy() - 2 / 3 * np.log(0.1 / 1.1))))
    kd = 16 * F.kl_div(
        F.log_softmax(student.double() / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean"
    )
    expected = 0.1 * 3 + 0.9 * kd.item() + 0.01 / 4 * factor * (areas * chances).sum()
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert phi.grad is not None
    assert (phi.grad > 0).all()


def test_gates_are_noisy_in_training_only(mixed: Graph) -> None:
    method = make("bar")
    method.attach(mixed)
    images = batches(4, 4)[0]
    mixed.model.train()
    assert not torch.equal(mixed.model(images), mixed.model(images))
    assert torch.equal(run(mixed.model, images), run(mixed.model, images))


def test_useless_channels_are_closed_until_the_budget_is_met() -> None:
    graph = half_useless()
    method = make("bar", keep=0.5, penalty=0.05, gate_lr=0.05, start=3.0)
    train_with_hooks(method, graph, steps=300, lr=0.01, data=brightest)
    gates = method.own_parameters()[0].detach().sigmoid()
    assert 3 <= int((stretched(gates) > 0).sum()) <= 5
    method.detach()
    (scores,) = method.score(Context(graph))
    assert scores is not None
    assert scores[list(USELESS)].max() < scores[list(USEFUL)].min()
