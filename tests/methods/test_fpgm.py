"""FPGM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods import Context, Method, fpgm
from prune2deploy.methods.fpgm import distance_sums, smallest_first


def test_filters_of_one_weight() -> None:
    # methods.md 3.13: pruning two takes 1 and 2, where a norm would take 0 and 1.
    sums = distance_sums(torch.tensor([[0.0], [1.0], [2.0], [10.0]]))
    torch.testing.assert_close(sums, torch.tensor([13.0, 11.0, 11.0, 27.0], dtype=torch.float64))
    assert sums.argsort(stable=True)[:2].tolist() == [1, 2]


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_it_is_the_sum_of_all_distances(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpgm, "COLUMNS_AT_ONCE", at_once)
    weight = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    rows = weight.double().reshape(9, -1)
    slow = torch.tensor([sum(float((a - b).norm()) for b in rows) for a in rows])
    torch.testing.assert_close(distance_sums(weight).float(), slow)


def test_near_duplicates_keep_their_small_distance() -> None:
    # In float32 a squared distance of 1e-10 between filters of norm 100 is lost in rounding.
    weight = torch.full((3, 100), 10.0, dtype=torch.float64)
    weight[1, 0] += 1e-5
    weight[2] *= -1
    sums = distance_sums(weight)
    far = 200.0
    torch.testing.assert_close(sums[0] - far, torch.tensor(1e-5).double(), rtol=0.05, atol=0)


def test_small_norms_come_first_when_both_rules_are_mixed() -> None:
    scores, norms = torch.tensor([9.0, 2.0, 5.0, 4.0]), torch.tensor([0.5, 3.0, 0.1, 2.0])
    mixed = smallest_first(scores, norms, 0.5)
    assert mixed.argsort().tolist() == [2, 0, 1, 3]
    assert torch.equal(mixed[[1, 3]], scores[[1, 3]])
    assert torch.equal(smallest_first(scores, norms, 0.0), scores)


def test_layers_that_share_channels_add_their_sums(mixed: Graph) -> None:
    expected = sum(
        distance_sums(mixed.model.get_parameter(f"{layer}.weight").detach())
        for layer in ("stem", "inner", "depth")
    )
    assert isinstance(expected, torch.Tensor)
    first = scores_of("fpgm", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, expected.float())


def test_the_share_that_norms_decide_is_an_option(mixed: Graph) -> None:
    first = scores_of("fpgm", mixed, norm_keep=0.7)[0]
    assert first is not None
    norms = torch.cat(
        [
            mixed.model.get_parameter(f"{n}.weight").detach().flatten(1)
            for n in ("stem", "inner", "depth")
        ],
        dim=1,
    ).norm(dim=1)
    assert set(first.argsort()[:3].tolist()) == set(norms.argsort()[:3].tolist())
    assert (first >= 0).all()


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1)]
    return nn.Sequential(*layers)


def zero_rows(weight: torch.Tensor) -> list[int]:
    return (~weight.detach().flatten(1).any(1)).nonzero().flatten().tolist()


def train_a_step(model: nn.Module, method: Method[Any], optimizer: torch.optim.Optimizer) -> None:
    (images,) = batches(8, 8)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4).backward()
    method.after_backward()
    optimizer.step()
    method.after_step(step())


def test_filters_nearest_the_median_are_zeroed_at_the_end_of_an_epoch() -> None:
    model = chain()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    (before,) = scores_of("fpgm", graph)
    assert before is not None
    method = make("fpgm", keep=0.7)
    method.attach(graph)
    method.after_step(step())
    assert zero_rows(model[0].weight) == []
    method.after_step(step(ends_epoch=True))
    assert zero_rows(model[0].weight) == sorted(before.argsort()[:3].tolist())
    assert model[0].bias.all()
    assert zero_rows(model[3].weight) == []


def test_zeroed_filters_do_not_learn_until_the_next_choice() -> None:
    model = chain()
    nn.init.constant_(model[1].bias, 0.2)  # a shift below 0 would keep the ReLU shut
    method = make("fpgm", keep=0.7)
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    train_a_step(model, method, optimizer)
    assert (model[0].weight != before).flatten(1).any(1).all(), "all learn in the first epoch"
    method.after_step(step(ends_epoch=True))
    zero = zero_rows(model[0].weight)
    assert len(zero) == 3
    before = model[0].weight.detach().clone()
    train_a_step(model, method, optimizer)
    assert zero_rows(model[0].weight) == zero
    assert int((model[0].weight != before).flatten(1).any(1).sum()) == 7
    method.attach(trace(model, torch.randn(2, 3, 8, 8)))
    train_a_step(model, method, optimizer)
    assert zero_rows(model[0].weight) == [], "another training begins with none"


def test_the_choice_is_made_anew_after_each_epoch() -> None:
    # The zeroed filters are moved away from all others, and the next ones go.
    model = chain()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    method = make("fpgm", keep=0.7)
    method.attach(graph)
    method.after_step(step(ends_epoch=True))
    first = zero_rows(model[0].weight)
    with torch.no_grad():
        for number, row in enumerate(first):
            model[0].weight[row] = 50.0 * (number + 1)
    method.after_step(step(ends_epoch=True))
    second = zero_rows(model[0].weight)
    assert len(second) == 3
    assert not set(first) & set(second)


def test_filters_of_zeros_go_first_wherever_the_median_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.Conv2d(5, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 0.0, 3.1, 3.2, 0.0]).view(5, 1, 1, 1))
    context = Context(trace(model, torch.randn(2, 1, 4, 4)))
    (found,) = make("fpgm").score(context)
    assert found is not None
    assert (found == 0).tolist() == [False, True, False, False, True]


def test_layers_that_share_channels_are_zeroed_together(mixed: Graph) -> None:
    method = make("fpgm", keep=0.8, norm_keep=0.9)
    method.attach(mixed)
    method.after_step(step(ends_epoch=True))
    layers = ("stem", "inner", "depth")
    shared = [zero_rows(mixed.model.get_parameter(f"{n}.weight")) for n in layers]
    assert shared[0] == shared[1] == shared[2]
    assert len(shared[0]) == 2
