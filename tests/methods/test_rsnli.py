"""RSNLI."""

from __future__ import annotations

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.rsnli import relative_costs, soft_threshold


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_the_steps_of_the_specification() -> None:
    # methods.md 3.17: a plain step of 0.1 * 0.2 to 0.48, then the threshold of 0.1.
    step = torch.tensor(0.1)
    torch.testing.assert_close(soft_threshold(torch.tensor([0.48]), step), torch.tensor([0.38]))
    assert soft_threshold(torch.tensor([0.05, -0.05, 0.0]), step).tolist() == [0, 0, 0]
    torch.testing.assert_close(soft_threshold(torch.tensor([-0.48]), step), torch.tensor([-0.38]))


def test_a_channel_costs_what_goes_with_it() -> None:
    # At 6×6 places: of the first 36 * (27 + 4), of the second 36 * (8 + 2); their mean over
    # 8 + 4 channels is 36 * 24.
    first, second = relative_costs(traced(chain()))
    assert first == pytest.approx(31 / 24)
    assert second == pytest.approx(10 / 24)


def test_each_scale_shrinks_by_rate_penalty_and_cost() -> None:
    model = chain()
    nn.init.constant_(model[1].weight, 0.5)
    nn.init.constant_(model[4].weight, -0.01)
    method = make("rsnli", penalty=0.6)
    method.attach(traced(model))
    biases = [model[n].bias.detach().clone() for n in (1, 4)]
    method.after_step(step(0.1))
    expected = 0.5 - 0.1 * 0.6 * 31 / 24
    torch.testing.assert_close(model[1].weight.detach(), torch.full((8,), expected))
    assert model[4].weight.tolist() == [0, 0, 0, 0]
    assert all(torch.equal(model[n].bias, b) for n, b in zip((1, 4), biases, strict=True))


def test_scales_of_frozen_channels_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    )
    method = make("rsnli", penalty=100.0)
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    method.after_step(step(0.1))
    assert not model[1].weight.any()
    assert model[3].weight.tolist() == [1, 1, 1, 1]


def test_training_brings_scales_to_exactly_zero_and_keeps_useful_ones() -> None:
    zeros = []
    for penalty in (0.0, 1.0):
        model = chain()
        method = make("rsnli", penalty=penalty)
        method.attach(traced(model))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for images in batches(160, 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 2)
            loss.backward()
            optimizer.step()
            method.after_step(step(0.1))
        scores = [s for s in scores_of("rsnli", traced(model)) if s is not None]
        zeros.append(sum(int((s == 0).sum()) for s in scores))
    assert zeros[0] == 0
    assert 1 <= zeros[1] < 12
