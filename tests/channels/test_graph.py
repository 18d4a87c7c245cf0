"""Widths, counts, and graphs with some groups frozen."""

from __future__ import annotations

import pytest
import torch
from networks import Net, counts, random_kept
from torch import nn

from prune2deploy.channels import Graph, cut, trace


def chain(*widths: int) -> Graph:
    """1x1 convolutions: 3 → each width → 2."""
    layers = [nn.Conv2d(i, o, 1) for i, o in zip((3, *widths), (*widths, 2), strict=True)]
    return trace(nn.Sequential(*layers), torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("width", "round_to", "steps"),
    [
        (24, 8, [24, 16, 8]),
        (24, 16, [24, 16]),
        (20, 8, [20, 16, 8]),
        (6, 8, [6]),
        (8, 8, [8]),
        (5, 1, [5, 4, 3, 2, 1]),
        (33, 32, [33, 32]),
    ],
)
def test_width_steps_are_multiples_below_the_full_width(
    width: int, round_to: int, steps: list[int]
) -> None:
    assert chain(width).width_steps(0, round_to) == steps


def test_a_channel_that_is_several_rows_counts_as_several() -> None:
    # Depthwise multiplier 3 follows; what is rounded is the first layer that produces them.
    doubled = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, groups=4), nn.Conv2d(16, 2, 1))
    graph = trace(doubled, torch.randn(1, 3, 2, 2))
    # 4 channels of 2 rows each: 8 rows in the first layer.
    assert [(g.name, g.size) for g in graph.groups] == [("0", 4)]
    assert graph.width_steps(0, 4) == [4, 2]
    assert graph.width_steps(0, 8) == [4]


def test_fixed_channels_beside_a_group_count_for_its_width() -> None:
    # 12 rows of `wide`: 4 are added to a constant and stay, 8 may go.
    model = Net(
        lambda net, x: net.head(net.wide(x) + torch.cat([torch.ones(1, 4, 2, 2), net.stem(x)], 1)),
        wide=nn.Conv2d(3, 12, 1),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(12, 2, 1),
    )
    graph = trace(model, torch.randn(1, 3, 2, 2))
    assert [(g.name, g.size) for g in graph.groups] == [("wide", 8)]
    assert graph.width_steps(0, 8) == [8, 4]


def test_counts_reads_a_plans_choices() -> None:
    graph = chain(6, 5)
    kept = random_kept(graph.groups)
    assert graph.counts(graph.plan(kept)).tolist() == counts(kept).tolist()


def test_a_layer_of_one_channel_cannot_lose_it() -> None:
    graph = chain(1, 4)
    assert [g.name for g in graph.groups] == ["1"]
    graph = chain(4)
    narrow = trace(cut(graph.model, graph.plan([[2]])), torch.randn(1, 3, 2, 2))
    assert narrow.groups == ()
