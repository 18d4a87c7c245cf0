"""OICSR."""

from __future__ import annotations

import math

import pytest
import torch
from scoring import batches, make, scores_of
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.oicsr import energy, group_lasso


def test_the_example_of_the_specification() -> None:
    # methods.md 3.27: out part [3], in part [4]: together 5, apart 7; gradient 3/5, not 1.
    out, read = torch.tensor([[3.0]], requires_grad=True), torch.tensor([[4.0]])
    joint = group_lasso(energy([out, read]))
    joint.backward()
    assert joint.item() == 5
    assert out.grad is not None
    torch.testing.assert_close(out.grad, torch.tensor([[0.6]]))


def test_a_channel_of_zeros_has_a_gradient_of_zero() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    with torch.no_grad():
        weight[1, 0] = 2.0
    group_lasso(energy([weight])).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0, 0, 0], [1, 0, 0]]


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize("by_size", [True, False])
def test_filters_and_the_weights_that_read_them_are_one_vector(by_size: bool) -> None:
    model = chain()
    (found,) = scores_of("oicsr", trace(model, torch.randn(2, 3, 8, 8)), by_size=by_size)
    made = model[0].weight.detach().square().sum((1, 2, 3))
    read = model[2].weight.detach().square().sum((0, 2, 3))
    assert found is not None
    torch.testing.assert_close(found, (made + read) / (27 + 4 if by_size else 1))


def test_the_penalty_is_that_of_all_groups_and_of_nothing_frozen() -> None:
    model = chain()
    method = make("oicsr", penalty=0.5)
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    by_hand = sum(
        math.sqrt(
            float(model[0].weight[c].detach().square().sum())
            + float(model[2].weight[:, c].detach().square().sum())
        )
        for c in range(6)
    )
    penalty = method.extra_loss()
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * by_hand, rel=1e-5)


def test_residual_groups_join_all_that_make_or_read_them(mixed: Graph) -> None:
    first = scores_of("oicsr", mixed, by_size=False)[0]
    makers = ("stem", "inner", "depth")
    expected = sum(
        mixed.model.get_parameter(f"{name}.weight").detach().square().sum((1, 2, 3))
        for name in makers
    )
    expected = expected + mixed.model.get_parameter("inner.weight").detach().square().sum((0, 2, 3))
    expected = expected + mixed.model.get_parameter("side.weight").detach().square().sum((0, 2, 3))
    # Flattened behind a 2×2 map: four columns of the linear layer for each channel.
    columns = mixed.model.get_parameter("hidden.weight").detach()[:, : 10 * 4]
    expected = expected + columns.square().sum(0).view(10, 4).sum(1)
    assert first is not None
    torch.testing.assert_close(first, expected)


def test_training_with_the_penalty_pulls_whole_channels_towards_zero() -> None:
    lowest = []
    for penalty in (0.0, 0.3):
        model = chain()
        method = make("oicsr", penalty=penalty)
        graph = trace(model, torch.randn(2, 3, 8, 8))
        method.attach(graph)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for images in batches(200, 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4)
            extra = method.extra_loss()
            assert extra is not None
            (loss + extra).backward()
            optimizer.step()
        (scores,) = scores_of("oicsr", trace(model, torch.randn(2, 3, 8, 8)))
        assert scores is not None
        lowest.append(float(scores.min()))
    assert lowest[1] < lowest[0] / 2
