"""GREG-1."""

from __future__ import annotations

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.greg1 import GrowingDecay, grown, smallest


def single(value: float) -> nn.Sequential:
    """One weight makes each of two channels."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    nn.init.constant_(model[0].weight, value)
    return model


def test_the_example_of_the_specification() -> None:
    # methods.md 3.29: decay 0.5, weight 1, no other gradient, rate 0.1: 0.95.
    model = single(1.0)
    decay = GrowingDecay(trace(model, torch.randn(1, 1, 4, 4)))
    decay.set_all(0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    decay.add()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(model[0].weight.detach().flatten(), torch.tensor([0.95, 0.95]))


@pytest.mark.parametrize(
    ("channels", "keep", "count"),
    [(10, 0.7, 3), (10, 0.3, 7), (7, 0.5, 4), (3, 0.1, 2), (1, 0.5, 0)],
)
def test_the_share_is_rounded_up_but_one_stays(channels: int, keep: float, count: int) -> None:
    chosen = smallest(torch.arange(channels, 0, -1.0), keep)
    assert chosen.nonzero().flatten().tolist() == list(range(channels - count, channels))


@pytest.mark.parametrize("total", [3, 7, 1000])
def test_the_ceiling_is_reached_however_long_the_training(total: int) -> None:
    decays = [grown((n + 1) / total, 0.3, 0.0, 2.0) for n in range(total)]
    assert decays == sorted(decays)
    assert decays[-1] == 2.0
    settled = [n for n in range(total) if (n + 1) / total >= 0.7]
    assert all(decays[n] == pytest.approx(2.0) for n in settled)
    assert grown(0.35, 0.3, 0.0, 2.0) == pytest.approx(1.0)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_only_the_smallest_filters_decay_and_more_and_more() -> None:
    model = chain()
    method = make("greg1", keep=0.7, ceiling=2.0, settle=0.5)
    method.attach(traced(model))
    weight = model[0].weight.detach()
    small = weight.abs().mean((1, 2, 3)).argsort()[:3]
    for number, decay in ((0, 0.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)):
        if number:
            method.after_step(step(number=number, total=4))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.after_backward()
        expected = torch.ones_like(weight)
        expected[small] += decay * weight[small]
        torch.testing.assert_close(model[0].weight.grad, expected)
        assert all(
            p.grad.unique().tolist() == [1] for n, p in model.named_parameters() if n != "0.weight"
        )


def test_layers_that_share_channels_are_chosen_and_decay_together(mixed: Graph) -> None:
    method = make("greg1", keep=0.8)
    names = [f"{name}.weight" for name in ("stem", "inner", "depth")]
    weights = [mixed.model.get_parameter(name) for name in names]
    small = sum(w.detach().abs().mean((1, 2, 3)) for w in weights).argsort()[:2].sort().values
    method.attach(mixed)
    method.after_step(step())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    method.after_backward()
    for weight in weights:
        assert weight.grad is not None
        assert weight.grad.flatten(1).any(1).nonzero().flatten().tolist() == small.tolist()
        torch.testing.assert_close(weight.grad[small], weight.detach()[small])


def test_the_score_is_the_mean_size_of_the_weights(mixed: Graph) -> None:
    first, second, third = scores_of("greg1", mixed)
    assert first is not None
    assert second is not None
    assert third is not None
    double = {n: p.detach().double() for n, p in mixed.model.named_parameters()}
    for channel in range(10):
        expected = sum(
            float(double[f"{n}.weight"][channel].abs().mean()) for n in ("stem", "inner", "depth")
        )
        assert float(first[channel]) == pytest.approx(expected, rel=1e-5)
    assert float(second[2]) == pytest.approx(float(double["side.weight"][2].abs().mean()))
    assert float(third[5]) == pytest.approx(float(double["hidden.weight"][5].abs().mean()))


@pytest.mark.parametrize("name", ["greg1", "greg2"])
def test_training_makes_the_share_of_the_filters_vanish(name: str) -> None:
    model = chain()
    method = make(name, keep=0.6)
    method.attach(traced(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number, images in enumerate(batches(480, 8), 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4)
        loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step(step(0.05, number, 60))
    method.detach()
    (scores,) = scores_of(name, traced(model))
    assert scores is not None
    ordered = scores.sort().values
    assert ordered[3] < ordered[4] / 3
    assert ordered[4] > 0.05
