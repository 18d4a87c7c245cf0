"""GDP."""

from __future__ import annotations

import pytest
import torch
from hooked import USEFUL, USELESS, brightest, half_useless, train_with_hooks
from networks import run
from scoring import batches, make, step

from prune2deploy.channels import Graph
from prune2deploy.methods import Context
from prune2deploy.methods.gdp import LOW_STEPS, eps_at, polarized


def test_the_gates_of_the_specification() -> None:
    # methods.md 3.22: a 0.1, eps 0.01 -> g 0.5, slope 5; eps 1e-4 gives 0.990.
    a = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    gate = polarized(a, 0.01)
    gate.backward()
    assert gate.item() == pytest.approx(0.5)
    assert a.grad is not None
    assert a.grad.item() == pytest.approx(5.0)
    assert polarized(a, 1e-4).item() == pytest.approx(0.990, abs=1e-4)


def test_eps_falls_by_equal_factors() -> None:
    assert eps_at(0.0) == pytest.approx(0.1)
    assert eps_at(0.5) == pytest.approx(0.1 * 1e-3**0.5)
    assert eps_at(1.0) == pytest.approx(1e-4)


def test_the_penalty_is_the_share_of_the_cost(mixed: Graph) -> None:
    full, macs = mixed.full, mixed.cost.macs
    method = make("gdp", penalty=3.0)
    method.attach(mixed)
    loss = method.extra_loss()
    assert loss is not None
    assert loss.item() == pytest.approx(3.0, rel=1e-5)
    (a,) = method.own_parameters()
    with torch.no_grad():
        a[10:12] = 0.0  # two of the second group's
    fewer = full.copy()
    fewer[1] -= 2
    loss = method.extra_loss()
    assert loss is not None
    assert loss.item() == pytest.approx(3.0 * macs(fewer) / macs(full), rel=1e-5)


def test_gates_move_by_a_tenth_of_the_rate_with_momentum(mixed: Graph) -> None:
    method = make("gdp")
    method.attach(mixed)
    (a,) = method.own_parameters()
    expected, speed = 1.0, 0.0
    for gradient in (0.5, -0.2, 0.1):
        a.grad = torch.full_like(a, gradient)
        method.after_step(step(0.3))
        speed = 0.9 * speed + gradient
        expected -= 0.03 * speed
        assert a.grad is None
    torch.testing.assert_close(a.detach(), torch.full((24,), expected))


def test_what_stays_low_is_closed_for_good_and_a_pause_starts_the_count_anew(mixed: Graph) -> None:
    method = make("gdp")
    method.attach(mixed)
    (a,) = method.own_parameters()
    with torch.no_grad():
        a[:2] = 0.005  # g = 2.5e-4
    for number in range(1, LOW_STEPS + 1):
        with torch.no_grad():
            a[1] = 0.1 if number == 50 else 0.005
        assert a[0] > 0
        method.after_step(step(number=number, total=10**9))
    assert a[0] == 0
    assert a[1] > 0
    mixed.model.train()
    mixed.model(batches(4, 4)[0]).square().sum().backward()
    assert a.grad is not None
    assert a.grad[0] == 0, "its slope is zero there"
    method.after_step(step(number=1, total=10**9))
    assert a[0] == 0


def test_a_step_across_zero_ends_there(mixed: Graph) -> None:
    method = make("gdp", gate_rate=1.0)
    method.attach(mixed)
    (a,) = method.own_parameters()
    for _ in range(2):
        a.grad = torch.zeros_like(a)
        a.grad[3] = 5.0
        method.after_step(step(0.3, total=10**9))
    assert a[3] == 0, "without a speed that would carry it on"
    a.grad = torch.zeros_like(a)
    method.after_step(step(0.3, total=10**9))
    assert a[3] == 0
    assert (a[:3] == 1).all()


def test_a_shrinking_eps_changes_an_open_gate_by_nothing(mixed: Graph) -> None:
    images = batches(4, 4)[0]
    before = run(mixed.model, images)
    method = make("gdp")
    method.attach(mixed)
    method.after_step(step(number=1, total=1))
    torch.testing.assert_close(run(mixed.model, images), before, rtol=1e-5, atol=1e-6)


def test_useless_channels_end_at_zero_and_useful_ones_near_one() -> None:
    graph = half_useless()
    method = make("gdp", penalty=0.3, gate_rate=10.0)
    train_with_hooks(method, graph, steps=400, lr=0.02, data=brightest)
    method.detach()
    (scores,) = method.score(Context(graph))
    assert scores is not None
    assert (scores[list(USELESS)] == 0).all()
    assert (scores[list(USEFUL)] > 0.9).all()
