"""C-SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import run
from scoring import batches, build_mixed, make, scores_of, step
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.methods import Context, Method
from prune2deploy.methods.csgd import (
    averaged,
    clusters_of,
    merged_into,
    pulled,
    score,
    summed,
)


def test_the_example_of_the_specification() -> None:
    # methods.md 3.8: the optimizer adds 0.1 times the filter.
    filters = torch.tensor([[1.0], [3.0], [5.0]])
    gradients = torch.tensor([[0.2], [0.4], [1.0]])
    direction = pulled(gradients, filters, torch.tensor([0, 0, 2]), 0.5) + 0.1 * filters
    torch.testing.assert_close(direction.flatten(), torch.tensor([-0.1, 1.1, 1.5]))


def test_means_and_sums_are_those_of_the_clusters() -> None:
    values, first = torch.randn(7, 5), torch.tensor([0, 1, 0, 3, 1, 0, 3])
    for channel in range(7):
        mine = [c for c in range(7) if first[c] == first[channel]]
        torch.testing.assert_close(averaged(values, first)[channel], values[mine].mean(0))
        expected = values[mine].sum(0) if channel == first[channel] else torch.zeros(5)
        torch.testing.assert_close(summed(values, first)[channel], expected)


def test_clusters_that_lie_apart_are_found_and_named_by_their_first() -> None:
    random = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0, 1, 2, 1, 0, 0, 2, 1, 8])
    points = torch.randn(9, 20, generator=random)[wanted]
    points += 0.05 * torch.randn(points.shape, generator=random)
    assert torch.equal(clusters_of(points, 4), wanted)


@pytest.mark.parametrize("count", [1, 5, 19, 20])
def test_there_are_as_many_clusters_as_asked_for_and_no_filter_is_nearer_to_another(
    count: int,
) -> None:
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(count)).double()
    first = clusters_of(points, count)
    assert len(first.unique()) == count
    means = averaged(points, first)
    mine = (points - means).norm(dim=1)
    nearest = torch.cdist(points, means[first.unique()]).min(dim=1).values
    torch.testing.assert_close(mine, nearest, rtol=1e-6, atol=1e-9)


def test_copies_can_be_clustered() -> None:
    assert len(clusters_of(torch.ones(6, 3), 4).unique()) == 4


def test_followers_go_first_and_the_farthest_of_them_last() -> None:
    points = torch.tensor([[1.0], [3.0], [1.2], [3.2], [3.5], [7.0]])
    found = score(points, torch.tensor([0, 1, 0, 1, 1, 5]))
    assert found.argsort().tolist() == [3, 2, 4, 0, 1, 5]
    assert (found > 1).tolist() == [True, True, False, False, False, True]


def test_what_goes_is_merged_into_the_first_that_stays() -> None:
    first = torch.tensor([0, 1, 0, 1, 0, 5])
    assert merged_into(first, np.array([0, 1, 5])).tolist() == [0, 1, 0, 1, 0, 5]
    assert merged_into(first, np.array([2, 3, 4])).tolist() == [2, 3, 2, 3, 4, 5]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers)


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def spread(tensor: Tensor, first: Tensor) -> Tensor:
    values = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    return values - averaged(values, first)


def test_filters_of_a_cluster_come_closer_by_the_same_factor_whatever_the_gradient() -> None:
    model = chain().double()
    method = make("csgd", keep=0.5, pull=2.0)
    method.attach(trace(model, torch.randn(2, 3, 8, 8).double()))
    first = clusters_of(model[0].weight.detach().flatten(1), 4)
    assert len(first.unique()) == 4
    # lr * eps is 2 / 10; of vectors a tenth of it. lr * decay is 0.5 * 0.1.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    method.after_step(step(lr=0.5, number=1, total=10))
    parts = [model[0].weight, model[0].bias, model[1].weight, model[1].bias]
    nn.init.normal_(model[1].bias)
    before = [spread(p, first) for p in parts]
    reader = model[3].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    given = model[3].weight.grad.clone()
    method.after_backward()
    optimizer.step()
    for part, old, eps in zip(parts, before, (0.2, 0.02, 0.02, 0.02), strict=True):
        torch.testing.assert_close(spread(part, first), old * (1 - 0.05 - eps))
    torch.testing.assert_close(model[3].weight.detach(), reader * 0.95 - 0.5 * given)


def test_the_pull_of_a_step_is_limited() -> None:
    method = make("csgd", pull=15.0)
    method.attach(traced(chain()))
    method.after_step(step(lr=0.5, number=1, total=3))
    assert method._eps == 0.5
    method.after_step(step(lr=0.5, number=1, total=1000))
    assert method._eps == pytest.approx(0.03)


def train(model: nn.Module, **options: float) -> Method[Any]:
    method = make("csgd", **options)
    steps = 200
    graph = trace(model, torch.randn(2, 3, 8, 8))
    method.attach(graph)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    model.train()
    for number, images in enumerate(batches(8 * steps, 8), 1):
        optimizer.zero_grad()
        output = model(images)
        logits = output.mean((2, 3)) if output.dim() > 2 else output
        nn.functional.cross_entropy(logits, torch.arange(8) % 4).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(step(0.02, number, steps))
    method.detach()
    return method


@pytest.mark.parametrize("build", [chain, build_mixed])
def test_after_training_merged_channels_change_nothing(build: type[nn.Module]) -> None:
    model = build()
    method = train(model, keep=0.5)
    graph = trace(model, torch.randn(2, 3, 8, 8))
    before = run(model, batches(4, 4)[0])
    scores = method.score(Context(graph))
    kept = [(s > 1).nonzero().flatten().numpy() for s in scores]
    assert [len(k) for k in kept] == [g.size // 2 for g in graph.groups]
    method.before_cut(Context(graph), kept)
    merged = run(cut(model, graph.plan(kept)), batches(4, 4)[0])
    torch.testing.assert_close(merged, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_without_the_merge_the_cut_changes_what_comes_out() -> None:
    model = chain()
    method = train(model, keep=0.5)
    graph = traced(model)
    before = run(model, batches(4, 4)[0])
    (scores,) = method.score(Context(graph))
    cropped = cut(model, graph.plan([(scores > 1).nonzero().flatten().numpy()]))
    gone = (run(cropped, batches(4, 4)[0]) - before).abs().max()
    assert gone > 0.05 * before.abs().max()


def test_training_brings_clusters_together_and_the_scores_remember_them() -> None:
    model = chain()
    first = clusters_of(model[0].weight.detach().flatten(1), 4)
    start = spread(model[0].weight, first).norm()
    method = train(model, keep=0.5)
    assert spread(model[0].weight, first).norm() < start / 1e3
    (scores,) = method.score(Context(traced(model)))
    assert (scores > 1).nonzero().flatten().tolist() == first.unique().tolist()
    (alone,) = scores_of("csgd", traced(chain()), keep=0.5)
    assert not torch.allclose(scores, alone)


def test_channels_of_several_copies_are_merged_with_all_of_them(mixed: Graph) -> None:
    # Four columns of the linear layer read each channel behind the flatten.
    method = make("csgd", keep=0.5)
    weight = mixed.model.get_parameter("hidden.weight").detach().clone()
    scores = method.score(Context(mixed))
    assert scores[1] is not None
    stay = (scores[1] > 1).nonzero().flatten()
    kept = [np.arange(10), stay.numpy(), np.arange(8)]
    method.before_cut(Context(mixed), kept)
    after = mixed.model.get_parameter("hidden.weight").detach()
    assert torch.equal(after[:, :40], weight[:, :40])
    before, now = (w[:, 40:].view(8, 6, 4) for w in (weight, after))
    torch.testing.assert_close(now[:, stay].sum(1), before.sum(1))
