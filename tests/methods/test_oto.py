"""OTO."""

from __future__ import annotations

import pytest
import torch
from networks import run
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.methods import oto
from prune2deploy.methods.oto import next_eps, turned

MAKERS = ("stem.weight", "stem.bias", "inner.weight", "depth.weight", "depth.bias")
NORMS = ("norm1", "norm2", "norm3")


def one(trial: list[float], eps: float, x: tuple[float, float] = (1.0, 1.0)) -> bool:
    before, after = torch.tensor([x]), torch.tensor([trial])
    dots, squares = (before * after).sum(1), before.square().sum(1)
    return bool(turned(dots, squares, eps, most=1)[0])


def test_the_example_of_the_specification() -> None:
    # methods.md 3.28: -0.3 turns round; 0.3 does at eps 0.5, where 0.3 < 1.
    assert one([-0.5, 0.2], 0.0)
    assert not one([0.1, 0.2], 0.0)
    assert one([0.1, 0.2], 0.5)


def test_zero_stays_zero_and_no_more_than_allowed_join_it() -> None:
    squares = torch.tensor([0.0, 1.0, 1.0, 4.0])
    dots = torch.tensor([0.0, -0.1, -0.2, -4.0])
    assert turned(dots, squares, 0.0, most=4).tolist() == [True, True, True, True]
    assert turned(dots, squares, 0.0, most=3).tolist() == [True, False, True, True]
    assert turned(dots, squares, 0.0, most=2).tolist() == [True, False, False, True]
    assert turned(dots, squares, 0.0, most=0).tolist() == [True, False, False, False]


def test_eps_grows_while_nothing_happens() -> None:
    assert next_eps(0.0, 0.0, stalled=True, met=False) == pytest.approx(0.1)
    assert next_eps(0.3, 0.0, stalled=False, met=False) == 0.3
    assert next_eps(0.95, 0.0, stalled=True, met=False) == 0.999
    assert next_eps(0.6, 0.2, stalled=True, met=True) == 0.2


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers)


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_the_norm_is_of_filters_biases_scales_and_shifts_of_all_layers(mixed: Graph) -> None:
    first = scores_of("oto", mixed)[0]
    names = [*MAKERS, *(f"{n}.{leaf}" for n in NORMS for leaf in ("weight", "bias"))]
    for channel in range(10):
        values = [mixed.model.get_parameter(n)[channel].detach().double().flatten() for n in names]
        assert first is not None
        assert float(first[channel]) == pytest.approx(float(torch.cat(values).norm()), rel=1e-5)


def test_the_subgradient_is_that_of_the_norm() -> None:
    model = chain()
    method = make("oto", penalty=0.5)
    method.attach(traced(model))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.after_backward()
    makers = [model[0].weight, model[0].bias, model[1].weight, model[1].bias]
    wanted = [p.detach().double().requires_grad_() for p in makers]
    for channel in range(6):
        (0.5 * torch.cat([p[channel].flatten() for p in wanted]).norm()).backward()
    for got, want in zip(makers, wanted, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        torch.testing.assert_close(got.grad.double(), 1 + want.grad, rtol=1e-4, atol=1e-6)
    assert model[3].weight.grad.unique().tolist() == [1], "what reads a channel is no part of it"


def turn_round(model: nn.Sequential, channel: int) -> None:
    """A step that takes all that makes a channel to the other side."""
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            p[channel] *= -0.5


def zeros(model: nn.Sequential) -> list[int]:
    makers = (model[0].weight, model[0].bias, model[1].weight, model[1].bias)
    empty = [not any(bool(p[c].any()) for p in makers) for c in range(6)]
    return [c for c in range(6) if empty[c]]


def test_a_channel_that_turns_round_after_the_warm_up_is_zero_for_good() -> None:
    model = chain()
    method = make("oto", warm_up=0.5)
    method.attach(traced(model))
    for number, expected in ((1, []), (2, []), (3, [4]), (4, [4])):
        turn_round(model, 4)
        if number == 4:
            with torch.no_grad():
                model[0].weight[4] = 1.0
        method.after_step(step(number=number, total=4))
        assert zeros(model) == expected, f"after step {number}"
    assert run(model[:2], batches(4, 4)[0])[:, 4].eq(0).all()


def test_no_more_than_the_share_are_zeroed() -> None:
    model = chain()
    method = make("oto", warm_up=0.0, keep=0.5)
    method.attach(traced(model))
    method.after_step(step(number=1, total=100))
    for channel in range(5):
        turn_round(model, channel)
    method.after_step(step(number=2, total=100))
    assert len(zeros(model)) == 3


def trained(model: nn.Sequential, **options: float) -> None:
    method = make("oto", **options)
    method.attach(traced(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number, images in enumerate(batches(320, 8), 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4)
        loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(step(0.05, number, 40))
    method.detach()


def test_training_brings_channels_to_zero_and_cutting_them_changes_nothing() -> None:
    model = chain()
    trained(model, penalty=0.05, keep=0.5)
    graph = traced(model)
    (scores,) = scores_of("oto", graph)
    assert scores is not None
    gone = (scores == 0).nonzero().flatten().tolist()
    assert 1 <= len(gone) <= 3
    before = run(model, batches(4, 4)[0])
    small = cut(model, graph.plan([[c for c in range(6) if c not in gone]]))
    torch.testing.assert_close(run(small, batches(4, 4)[0]), before, rtol=0, atol=1e-6)


def test_without_zeroing_no_channel_is_zero() -> None:
    model = chain()
    trained(model, penalty=0.0, keep=1.0)
    assert zeros(model) == []


def test_eps_grows_until_channels_go_even_without_a_penalty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = chain()
    trained(model, penalty=0.0, keep=0.5)
    assert zeros(model)
    monkeypatch.setattr(oto, "next_eps", lambda eps, *_: eps)
    model = chain()
    trained(model, penalty=0.0, keep=0.5)
    assert not zeros(model)
