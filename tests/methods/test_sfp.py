"""SFP."""

from __future__ import annotations

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.sfp import smallest


@pytest.mark.parametrize(("channels", "keep", "count"), [(10, 0.7, 3), (16, 0.7, 4), (7, 0.5, 3)])
def test_the_floor_of_the_share_is_zeroed(channels: int, keep: float, count: int) -> None:
    norms = torch.arange(channels, 0, -1.0)
    assert smallest(norms, keep).tolist() == list(range(channels - count, channels))


def test_of_equal_norms_the_first_go() -> None:
    assert smallest(torch.ones(4), 0.5).tolist() == [0, 1]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1)]
    return nn.Sequential(*layers)


def zero_rows(weight: torch.Tensor) -> list[int]:
    return (~weight.detach().flatten(1).any(1)).nonzero().flatten().tolist()


def test_filters_are_zeroed_at_the_end_of_an_epoch_and_only_then() -> None:
    model = chain()
    method = make("sfp", keep=0.7)
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    before = model[0].weight.detach().clone()
    method.after_step(step(number=1, total=4))
    assert torch.equal(model[0].weight, before)
    method.after_step(step(number=2, total=4, ends_epoch=True))
    order = before.flatten(1).norm(dim=1).argsort()
    assert zero_rows(model[0].weight) == sorted(order[:3].tolist())
    assert model[0].bias.all(), "the bias is no weight of the filter"
    assert model[1].weight.tolist() == [1] * 10
    assert zero_rows(model[3].weight) == [], "the last layer's channels cannot go"


def test_a_zeroed_filter_grows_again() -> None:
    # What a mask would not allow. A shift below 0 would keep the ReLU shut.
    model = chain()
    nn.init.constant_(model[1].bias, 0.2)
    method = make("sfp", keep=0.7)
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    method.after_step(step(ends_epoch=True))
    zero = zero_rows(model[0].weight)
    assert len(zero) == 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (images,) = batches(8, 8)
    nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4).backward()
    optimizer.step()
    method.after_step(step())
    assert zero_rows(model[0].weight) == []


def test_layers_that_share_channels_are_zeroed_together(mixed: Graph) -> None:
    method = make("sfp", keep=0.8)
    method.attach(mixed)
    method.after_step(step(ends_epoch=True))
    shared = [
        zero_rows(mixed.model.get_parameter(f"{n}.weight")) for n in ("stem", "inner", "depth")
    ]
    assert shared[0] == shared[1] == shared[2]
    assert len(shared[0]) == 2
    first = scores_of("sfp", mixed)[0]
    assert first is not None
    assert (first == 0).nonzero().flatten().tolist() == shared[0]
