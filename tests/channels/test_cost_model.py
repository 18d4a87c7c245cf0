"""Costs from channel counts alone, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import torch
from networks import counted_macs, parameters
from torch import nn

from prune2deploy.channels import cut, trace


def test_dropping_a_middle_channel_saves_in_both_layers() -> None:
    # methods.md, section 4: 3 -> 4 -> 2 costs 12 + 8; with 3 in the middle 9 + 6.
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    cost = trace(model, torch.randn(1, 3, 1, 1)).cost
    assert [cost.macs(np.array([k])) for k in (4, 3)] == [20, 15]
    assert [cost.params(np.array([k])) for k in (4, 3)] == [20, 15]


def test_macs_are_those_of_one_sample() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 3))
    costs = [trace(model, torch.randn(n, 3, 11, 9)).cost for n in (1, 2, 5)]
    # 5x4 and 3x2 positions
    assert [c.macs(c.full) for c in costs] == [20 * 27 * 8 + 6 * 72 * 4] * 3


def test_biases_norms_and_buffers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 2)
    )
    cost = trace(model, torch.randn(2, 3, 4, 4)).cost
    # 8 filters of 27 weights, a bias, gamma and beta (no statistics); 4 pixels a channel.
    assert cost.params(np.array([8, 6])) == 8 * 30 + (32 + 1) * 6 + (6 + 1) * 2
    assert cost.params(np.array([3, 5])) == 3 * 30 + (12 + 1) * 5 + (5 + 1) * 2
    assert cost.macs(np.array([3, 5])) == 4 * 27 * 3 + 12 * 5 + 5 * 2


def test_transposed_and_grouped_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.Conv2d(6, 2, 1),
    )
    image = torch.randn(1, 3, 6, 6)
    graph = trace(model, image)
    kept = [np.arange(2), np.arange(5)]
    small = cut(model, graph.plan(kept))
    assert graph.cost.macs(graph.full) == counted_macs(model, image)
    assert graph.cost.macs(np.array([2, 5])) == counted_macs(small, image)
    assert graph.cost.params(np.array([2, 5])) == parameters(small)


def test_soft_costs_are_those_of_whole_counts_with_a_gradient_between_them() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Flatten(), nn.Linear(48, 6)]
    graph = trace(nn.Sequential(*layers, nn.Linear(6, 2)), torch.randn(2, 3, 6, 6))
    assert graph.full.tolist() == [4, 6]
    cost = graph.cost
    for counts in (cost.full, cost.full // 2, np.ones(2, dtype=np.int64)):
        soft = cost.soft_macs(torch.from_numpy(counts).double())
        assert float(soft) == cost.macs(counts)
    kept = torch.tensor([2.5, 5.25], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(cost.soft_macs, kept)
    assert cost.soft_macs(kept.float()).dtype == torch.float32


def test_a_parameter_that_nothing_reads_counts_as_a_parameter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    model.register_parameter("unused", nn.Parameter(torch.zeros(100)))
    cost = trace(model, torch.randn(1, 3, 2, 2)).cost
    assert cost.params(cost.full) == parameters(model)


def test_more_channels_never_cost_less() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    )
    cost = trace(model, torch.randn(1, 3, 5, 5)).cost
    for group in range(2):
        counts = cost.full.copy()
        macs, params = [], []
        for kept in range(1, cost.full[group] + 1):
            counts[group] = kept
            macs.append(cost.macs(counts))
            params.append(cost.params(counts))
        assert macs == sorted(set(macs))
        assert params == sorted(set(params))
