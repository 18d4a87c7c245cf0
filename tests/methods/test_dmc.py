"""DMC."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hooked import USEFUL, USELESS, brightest, half_useless, train_with_hooks
from scoring import batches, make, step

from prune2deploy.channels import Graph
from prune2deploy.methods import Context
from prune2deploy.methods.dmc import binary, distance


def test_the_numbers_of_the_specification() -> None:
    # methods.md 3.21: 60 of 100 with half wanted, and gates of 0.49 and 0.5.
    assert distance(torch.tensor(60.0), 50).item() == pytest.approx(2.3979, abs=1e-4)
    theta = torch.tensor([0.49, 0.5, -0.1, 1.1, 0.0, 1.0], requires_grad=True)
    gates = binary(theta)
    assert gates.tolist() == [0, 1, 0, 1, 0, 1]
    gates.sum().backward()
    assert theta.grad is not None
    # At 1, where they start, it must pass.
    assert theta.grad.tolist() == [1, 1, 0, 0, 1, 1]


def test_drawn_gates_are_open_as_often_as_theta_says() -> None:
    torch.manual_seed(0)
    theta = torch.full((20000,), 0.3, requires_grad=True)
    gates = binary(theta, stochastic=True)
    assert set(gates.tolist()) == {0.0, 1.0}
    assert gates.mean().item() == pytest.approx(0.3, abs=0.02)
    gates.sum().backward()
    assert theta.grad is not None
    assert (theta.grad == 1).all()


def test_the_penalty_is_the_distance_from_the_share_of_the_cost(mixed: Graph) -> None:
    full, macs = mixed.full, mixed.cost.macs
    method = make("dmc", keep=0.7, penalty=1.5)
    method.attach(mixed)
    (theta,) = method.own_parameters()
    with torch.no_grad():
        theta[10:13] = 0.2  # three of the second group's
    fewer = full.copy()
    fewer[1] -= 3
    loss = method.extra_loss()
    assert loss is not None
    percent = 100 * macs(fewer) / macs(full)
    assert loss.item() == pytest.approx(1.5 * math.log(abs(percent - 70) + 1), rel=1e-4)
    loss.backward()
    assert theta.grad is not None
    assert (theta.grad > 0).all(), "too much is kept, so all are pushed down"


def test_weights_and_statistics_stand_still_and_flags_come_back(mixed: Graph) -> None:
    frozen = mixed.model.get_parameter("side.bias").requires_grad_(False)
    before = copy.deepcopy(mixed.model.state_dict())
    method = make("dmc", gate_lr=1e-4)
    train_with_hooks(method, mixed)
    moved = mixed.model.state_dict()
    assert not torch.equal(moved["prune2deploy_gates.learned"], torch.ones(24))
    mixed.model.train()
    mixed.model(batches(4, 4)[0])
    assert all(m.training for m in mixed.model.modules()), "modes are those of the training"
    method.detach()
    # All gates are still 1: the very weights it had.
    for key, value in mixed.model.state_dict().items():
        assert torch.equal(value, before[key])
    flags = {name: p.requires_grad for name, p in mixed.model.named_parameters()}
    assert flags.pop("side.bias") is False
    assert frozen is mixed.model.get_parameter("side.bias")
    assert all(flags.values())


def test_theta_moves_by_adam_and_is_held_between_zero_and_one(mixed: Graph) -> None:
    method = make("dmc", gate_lr=0.3)
    method.attach(mixed)
    (theta,) = method.own_parameters()
    theta.grad = torch.ones_like(theta)
    theta.grad[0] = -1.0
    method.after_step(step())
    torch.testing.assert_close(theta[0].detach(), torch.tensor(1.0))
    torch.testing.assert_close(theta[1:].detach(), torch.full((23,), 0.7))
    assert theta.grad is None or not theta.grad.any()


@pytest.mark.parametrize("stochastic", [False, True])
def test_useless_channels_are_closed_until_the_budget_is_met(stochastic: bool) -> None:
    graph = half_useless()
    method = make("dmc", keep=0.5, gate_lr=0.01, stochastic=stochastic)
    train_with_hooks(method, graph, steps=200, data=brightest)
    method.detach()
    (theta,) = method.score(Context(graph))
    assert theta is not None
    assert (theta[list(USELESS)] < theta[list(USEFUL)].min()).all()
    assert 3 <= int((theta >= 0.5).sum()) <= 5
