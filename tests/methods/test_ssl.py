"""SSL."""

from __future__ import annotations

import math

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.ssl import norms, shrinkage


def test_the_example_of_the_specification() -> None:
    # methods.md 3.26: filters 5, channels 3 + 4.
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert norms(weight).sum() == 5
    assert norms(weight.T).sum() == 7


def test_a_vector_of_zeros_has_a_gradient_of_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    norms(weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_a_proximal_step_shrinks_norms_by_the_strength_and_ends_at_zero() -> None:
    factor = shrinkage(torch.tensor([5.0, 0.5, 0.4, 0.0]), 0.5)
    torch.testing.assert_close(factor, torch.tensor([0.9, 0.0, 0.0, 0.0]))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def by_hand(model: nn.Sequential) -> tuple[list[float], list[float]]:
    """Norms of the filters and of the slices, in float64."""
    made, read = (model[n].weight.detach().double() for n in (0, 2))
    filters = [math.sqrt(float(made[c].square().sum())) for c in range(6)]
    return filters, [math.sqrt(float(read[:, c].square().sum())) for c in range(6)]


def test_the_penalty_counts_filters_and_slices_by_the_root_of_their_size() -> None:
    model = chain()
    method = make("ssl", penalty=0.5, read_penalty=0.25)
    method.attach(traced(model))
    filters, slices = by_hand(model)
    expected = 0.5 * math.sqrt(27) * sum(filters) + 0.25 * math.sqrt(4) * sum(slices)
    extra = method.extra_loss()
    assert extra is not None
    assert extra.item() == pytest.approx(expected, rel=1e-5)


def test_a_channel_that_is_not_made_or_not_read_scores_zero() -> None:
    model = chain()
    filters, slices = by_hand(model)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 4] = 0
    (scores,) = scores_of("ssl", traced(model))
    expected = torch.tensor([math.sqrt(f * s) for f, s in zip(filters, slices, strict=True)])
    expected[[1, 4]] = 0
    assert scores is not None
    torch.testing.assert_close(scores, expected)


def test_residual_groups_take_all_that_make_or_read_them(mixed: Graph) -> None:
    def square(name: str, dim: int) -> Tensor:
        weight = mixed.model.get_parameter(f"{name}.weight").detach()
        return weight.movedim(dim, 0).flatten(1).square().sum(1)

    first = scores_of("ssl", mixed)[0]
    made = square("stem", 0) + square("inner", 0) + square("depth", 0)
    # Flattened behind a 2×2 map: four columns of the linear layer for each channel.
    columns = square("hidden", 1)[: 10 * 4].view(10, 4).sum(1)
    read = square("inner", 1) + square("side", 1) + columns
    assert first is not None
    torch.testing.assert_close(first, (made * read) ** 0.25)


def test_proximal_shrinks_after_the_step_and_leaves_the_loss_alone() -> None:
    model = chain()
    method = make("ssl", penalty=0.1, read_penalty=0.2, proximal=True)
    method.attach(traced(model))
    before = by_hand(model)
    bias = model[0].bias.detach().clone()
    assert method.extra_loss() is None
    method.after_step(step(lr=0.1))
    after = by_hand(model)
    for old, new, by in zip(before, after, (0.01 * math.sqrt(27), 0.02 * 2), strict=True):
        assert new == pytest.approx([max(0.0, norm - by) for norm in old], rel=1e-4)
    assert torch.equal(model[0].bias, bias)


def test_without_proximal_a_step_leaves_the_weights_alone() -> None:
    model = chain()
    before = model[0].weight.detach().clone()
    method = make("ssl")
    method.attach(traced(model))
    method.after_step(step(lr=0.1))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("proximal", [False, True])
def test_training_takes_whole_channels_to_zero_exactly_if_proximal(proximal: bool) -> None:
    lowest = []
    for penalty in (0.0, 0.1):
        model = chain()
        method = make("ssl", penalty=penalty, read_penalty=penalty, proximal=proximal)
        method.attach(traced(model))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for number, images in enumerate(batches(320, 8), 1):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4)
            extra = method.extra_loss()
            (loss if extra is None else loss + extra).backward()
            optimizer.step()
            method.after_step(step(0.05, number, 40))
        (scores,) = scores_of("ssl", traced(model))
        assert scores is not None
        lowest.append(float(scores.min()))
    assert lowest[1] < lowest[0] / 2
    assert (lowest[1] == 0) == proximal
