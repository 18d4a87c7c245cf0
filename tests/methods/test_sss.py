"""SSS."""

from __future__ import annotations

import pytest
import torch
from networks import run
from scoring import batches, make, scores_of, step, train
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods.sss import proximal_step, soft_threshold


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 4, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def factors(graph: Graph) -> nn.Parameter:
    return graph.model.get_parameter("prune2deploy_gates.factor")


def test_the_steps_of_the_specification() -> None:
    # methods.md 3.10: a gradient of 0.3 that stays, rate 0.1, penalty 0.5, momentum 0.9.
    lam, velocity = torch.ones(1), torch.zeros(1)
    found = []
    for _ in range(3):
        lam, velocity = proximal_step(lam, velocity, torch.tensor([0.3]), 0.1, 0.5, 0.9)
        found.append(lam.item())
    assert found == pytest.approx([0.848, 0.6312, 0.35608], abs=1e-6)


def test_steps_agree_with_the_formula_written_out_for_one_factor() -> None:
    random = torch.Generator().manual_seed(0)
    lam, velocity = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    by_hand = [(1.0, 0.0)] * 5
    reached_zero = False
    for _ in range(12):
        gradient = torch.randn(5, dtype=torch.float64, generator=random)
        lam, velocity = proximal_step(lam, velocity, gradient, 0.2, 0.4, 0.7)
        for number, (x, v) in enumerate(by_hand):
            moved = x - 0.2 * float(gradient[number])
            z = max(moved - 0.08, 0.0) if moved > 0 else min(moved + 0.08, 0.0)
            v = 0.7 * v + z - x
            by_hand[number] = (max(0.0, z + 0.7 * v), v)
        expected = torch.tensor(by_hand, dtype=torch.float64)
        torch.testing.assert_close(lam, expected[:, 0])
        torch.testing.assert_close(velocity, expected[:, 1])
        reached_zero |= bool((lam == 0).any())
    assert reached_zero


def test_soft_thresholds_move_towards_zero_and_stop_there() -> None:
    values = torch.tensor([0.5, -0.5, 0.05, -0.05, 0.0])
    expected = torch.tensor([0.4, -0.4, 0.0, 0.0, 0.0])
    torch.testing.assert_close(soft_threshold(values, 0.1), expected)


def test_attaching_changes_no_output(mixed: Graph) -> None:
    images = batches(4, 4)[0]
    before = run(mixed.model, images)
    make("sss").attach(mixed)
    torch.testing.assert_close(run(mixed.model, images), before, rtol=0, atol=1e-6)
    assert factors(mixed).tolist() == [1.0] * 24


def test_a_step_moves_the_factors_by_their_own_gradient_and_momentum(mixed: Graph) -> None:
    method = make("sss", penalty=0.5, momentum=0.9)
    method.attach(mixed)
    assert [id(p) for p in method.own_parameters()] == [id(factors(mixed))]
    method.after_step(step(0.1))
    assert factors(mixed).tolist() == [1.0] * 24, "no gradient, no step"
    for expected in (0.848, 0.6312, 0.35608):
        factors(mixed).grad = torch.full((24,), 0.3)
        method.after_step(step(0.1))
        torch.testing.assert_close(factors(mixed).detach(), torch.full((24,), expected))
        assert factors(mixed).grad is None, "or the next backward pass would add to it"


def test_a_second_training_begins_without_momentum(mixed: Graph) -> None:
    method = make("sss", penalty=0.5)
    for _ in range(2):
        method.attach(mixed)
        factors(mixed).grad = torch.full((24,), 0.3)
        method.after_step(step(0.1))
        torch.testing.assert_close(factors(mixed).detach(), torch.full((24,), 0.848))
        method.detach()


def test_training_brings_factors_to_zero_and_detaching_keeps_the_output() -> None:
    zeros = []
    for penalty in (0.0, 0.06):
        model = chain()
        names = [name for name, _ in model.named_parameters()]
        graph = traced(model)
        method = make("sss", penalty=penalty)
        method.attach(graph)
        train(method, graph, 40)
        learned = factors(graph).detach().clone()
        before = run(model, batches(4, 4)[0])
        method.detach()
        torch.testing.assert_close(run(model, batches(4, 4)[0]), before, rtol=1e-5, atol=1e-6)
        assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
        assert not model._forward_hooks
        zeros.append((learned == 0).nonzero().flatten().tolist())
        first, second = scores_of("sss", traced(model))
        assert first is not None
        assert second is not None
        silent = [n for n, value in enumerate([*first.tolist(), *second.tolist()]) if value == 0]
        assert silent == zeros[-1]
        assert not model[1].bias[first == 0].any(), "the shift goes with the scale"
        assert not model[3].bias[second == 0].any()
    assert zeros[0] == []
    assert 1 <= len(zeros[1]) < 14


def test_the_score_has_the_factor_in_it(mixed: Graph) -> None:
    method = make("sss")
    method.attach(mixed)
    with torch.no_grad():
        factors(mixed).copy_(torch.linspace(0, 1, 24))
    gamma = mixed.model.get_submodule("norm4").get_submodule("parametrizations.weight")
    expected = gamma.original.detach().abs() * torch.linspace(0, 1, 24)[10:16]
    method.detach()
    found = scores_of("sss", mixed)[1]
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_norms_that_share_channels_are_averaged(mixed: Graph) -> None:
    names = [f"norm{n}.weight" for n in (1, 2, 3)]
    expected = torch.stack([mixed.model.get_parameter(n).detach().abs() for n in names]).mean(0)
    found = scores_of("sss", mixed)[0]
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_filters_without_a_norm_are_compared_with_their_mean() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=False), nn.Conv2d(2, 1, 1))
    graph = trace(model, torch.randn(1, 1, 4, 4))
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]).view_as(weight))
    (score,) = scores_of("sss", graph)
    torch.testing.assert_close(score, torch.tensor([5.0, 1.0]) / 3)
    nn.init.zeros_(weight)
    (score,) = scores_of("sss", graph)
    assert score is not None
    assert score.tolist() == [0, 0]


def test_a_network_without_channels_that_can_go_is_refused() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(2, 3, 2, 2))
    with pytest.raises(MethodError, match="none can have a gate"):
        make("sss").attach(graph)
