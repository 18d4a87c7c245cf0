"""GREG-2; what it shares with GREG-1 is tested there."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from scoring import make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def decays(method: object, model: nn.Sequential) -> list[float]:
    """What the next step adds to the gradients, over the weights."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.after_backward()  # type: ignore[attr-defined]
    assert not model[2].weight.grad.any()
    assert not model[0].bias.grad.any()
    ratios = model[0].weight.grad / model[0].weight.detach()
    torch.testing.assert_close(ratios, ratios[:, :1, :1, :1].expand_as(ratios))
    return [float(r) for r in ratios[:, 0, 0, 0]]


def test_all_filters_decay_first_and_then_those_that_are_smallest_by_then() -> None:
    model = chain()
    method = make("greg2", keep=0.5, choose=0.2, first_ceiling=0.1, ceiling=0.9, settle=0.4)
    method.attach(traced(model))
    assert decays(method, model) == [0, 0, 0, 0]
    method.after_step(step(number=1, total=10))
    assert decays(method, model) == pytest.approx([0.05] * 4)
    with torch.no_grad():
        model[0].weight[[1, 3]] *= 0.01
    for number, grown in ((2, 0.1), (3, 0.3), (4, 0.5), (6, 0.9), (9, 0.9), (10, 0.9)):
        method.after_step(step(number=number, total=10))
        assert decays(method, model) == pytest.approx([-1e-4, grown, -1e-4, grown], rel=1e-4)
        # Once chosen, it stays so.
        with torch.no_grad():
            model[0].weight[0] *= 0.5


def test_a_second_training_chooses_anew() -> None:
    model = chain()
    method = make("greg2")
    for channels, factor in (([0, 1], 1e-3), ([2, 3], 1e-6)):
        method.attach(traced(model))
        with torch.no_grad():
            model[0].weight[channels] *= factor
        method.after_step(step(number=5, total=10))
        found = decays(method, model)
        assert [c for c in range(4) if found[c] > 0] == channels
        method.detach()


def test_the_score_is_that_of_greg1(mixed: Graph) -> None:
    for a, b in zip(scores_of("greg1", mixed), scores_of("greg2", mixed), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_there_must_be_time_to_grow() -> None:
    with pytest.raises(ValidationError, match="together they must be below 1"):
        make("greg2", choose=0.5, settle=0.5)
