"""What users of other pruning tools stumble over, each as a small model of the same make."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, assert_groups, random_kept, randomize_norms, run
from torch import Tensor, nn

import prune2deploy as p2d
from prune2deploy.channels import cut, trace
from prune2deploy.errors import BudgetError


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def block(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


# Detectors in the manner of YOLO.


class C2f(nn.Module):
    """Splits in two, lets bottlenecks work on the last part, and concatenates all of them."""

    def __init__(self, inputs: int, width: int, depth: int, how: str) -> None:
        super().__init__()
        self.c, self.how = width, how
        self.open = block(inputs, 2 * width)
        self.close = block((2 + depth) * width, 2 * width)
        self.m = nn.ModuleList(
            nn.Sequential(block(width, width, 3), block(width, width, 3)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.open(x)
        parts = list(x.chunk(2, 1) if self.how == "chunk" else x.split((self.c, self.c), 1))
        for bottleneck in self.m:
            parts.append(parts[-1] + bottleneck(parts[-1]))
        closed: Tensor = self.close(torch.cat(parts, 1))
        return closed


class Sppf(nn.Module):
    """Pools three times in a row and concatenates what each pooling gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.open, self.close = block(width, width // 2), block(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.open(x)]
        maps.extend(self.pool(maps[-1]) for _ in range(3))
        closed: Tensor = self.close(torch.cat(maps, 1))
        return closed


class Detect(nn.Module):
    """Boxes as distributions over 4 distances, and 5 classes, per scale."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.bins, self.nc = 4, 5
        self.no = 4 * self.bins + self.nc
        self.box = nn.ModuleList(
            nn.Sequential(block(c, 6, 3), nn.Conv2d(6, 4 * self.bins, 1)) for c in widths
        )
        self.cls = nn.ModuleList(
            nn.Sequential(block(c, 7, 3), nn.Conv2d(7, self.nc, 1)) for c in widths
        )
        self.dfl = nn.Conv2d(self.bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.copy_(torch.arange(4.0).view(1, 4, 1, 1))

    def forward(self, maps: list[Tensor]) -> Any:
        maps = [
            torch.cat([box(x), cls(x)], 1)
            for box, cls, x in zip(self.box, self.cls, maps, strict=True)
        ]
        if self.training:
            return maps
        anchors = torch.cat([x.view(x.shape[0], self.no, -1) for x in maps], 2)
        boxes, scores = anchors.split((4 * self.bins, self.nc), 1)
        distances = boxes.view(len(boxes), 4, self.bins, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.dfl(distances).flatten(1, 2), scores.sigmoid()], 1)


class Detector(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.down = block(3, 9, 3, 2), block(8, 10, 3, 2)
        self.early, self.late = C2f(9, 4, 2, how), C2f(10, 6, 1, how)
        self.sppf, self.neck = Sppf(12), C2f(20, 5, 1, how)
        self.up = nn.Upsample(scale_factor=2)
        self.head = Detect((10, 12))

    def forward(self, x: Tensor) -> Any:
        large = self.early(self.stem(x))
        small = self.sppf(self.late(self.down(large)))
        large = self.neck(torch.cat([self.up(small), large], 1))
        return self.head([large, small])


@pytest.mark.parametrize("how", ["chunk", "split"])
def test_backbone_and_neck_of_a_detector_are_free_and_its_answers_stay(
    image: Tensor, how: str
) -> None:
    # The halves of a C2f's opening layer are of one length, so they shrink alike.
    opening = {"early.open.0": 4, "late.open.0": 6, "neck.open.0": 5}
    inner = {"early.m.0.0.0": 4, "early.m.1.0.0": 4, "late.m.0.0.0": 6, "neck.m.0.0.0": 5}
    closing = {"early.close.0": 8, "late.close.0": 12, "neck.close.0": 10}
    free = {"stem.0": 9, "down.0": 10, "sppf.open.0": 6, "sppf.close.0": 12}
    free |= opening | inner | closing
    for scale in range(2):
        free |= {f"head.box.{scale}.0.0": 6, f"head.cls.{scale}.0.0": 7}
    model = Detector(how)
    graph = assert_groups(model, image, free)
    # Both scales are concatenated over the anchors, so they count as one.
    assert {f.name for f in graph.frozen} == {"head.box.0.1", "head.cls.0.1"}

    small = cut(model, graph.plan(random_kept(graph.groups)))
    assert run(small, image).shape == (2, 4 + 5, 8 * 8 + 4 * 4)
    assert torch.equal(small.head.dfl.weight, model.head.dfl.weight)
    maps = small.train()(image)
    assert [tuple(x.shape) for x in maps] == [(2, 21, 8, 8), (2, 21, 4, 4)]


# Concatenation, splits, shuffles and attention in one model.


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass by, then both halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            block(half, half),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.BatchNorm2d(half),
            block(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_a_channel_shuffle_after_a_split_is_exact_and_cuts_both_branches(image: Tensor) -> None:
    model = nn.Sequential(block(3, 16), ShuffleUnit(16), ShuffleUnit(16), nn.Conv2d(16, 4, 1))
    graph = trace(randomize_norms(model), image)
    names = [g.name for g in graph.groups]
    assert {"0.0", "1.branch.0.0", "2.branch.0.0"} <= set(names)
    assert {f.name for f in graph.frozen} == {"3"}
    assert_groups(model, image, {g.name: g.size for g in graph.groups})


def test_parts_of_a_concatenation_are_found_after_reshape_and_attention(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([net.a(x), net.b(x)], 1)
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = net.mix(tokens).split(net.sizes, 2)
        mixed = (query @ key.transpose(1, 2) * 0.3).softmax(-1) @ value
        both = torch.cat([mixed.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]), x], 1)
        return net.head(both)

    model = Net(
        forward,
        a=nn.Conv2d(3, 6, 4, 4),
        b=nn.Conv2d(3, 5, 4, 4),
        mix=nn.Linear(11, 7 + 7 + 9),
        head=nn.Conv2d(9 + 11, 4, 1),
    )
    model.sizes = [7, 7, 9]  # type: ignore[assignment]
    graph = assert_groups(model, image, {"a": 6, "b": 5, "mix": 7, "mix#2": 9})
    small = cut(model, graph.plan([range(2), range(3), range(4), range(5)]))
    assert small.sizes == [4, 4, 5]


# What must not be touched, and what is said about it.


def residual() -> nn.Module:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.wide(x + net.inner(x)).relu())

    return Net(
        forward,
        stem=block(3, 8),
        inner=nn.Sequential(block(8, 6), block(6, 8)),
        wide=block(8, 10),
        head=nn.Conv2d(10, 4, 1),
    )


def test_an_excluded_layer_that_is_added_to_others_stays_bit_for_bit(image: Tensor) -> None:
    model = randomize_norms(residual())
    graph = trace(model, image, exclude=["inner.1"])
    assert {g.name: g.size for g in graph.groups} == {"wide.0": 10}
    small = cut(model, graph.plan([[2, 3]]))
    before, after = model.state_dict(), small.state_dict()
    # What is added to it, and what it reads, cannot change either.
    for name in before:
        if name.startswith(("inner.", "stem.")):
            assert torch.equal(before[name], after[name]), name


def test_parameters_without_gradient_stay_and_the_reason_is_said(image: Tensor) -> None:
    model = randomize_norms(residual())
    model.stem.requires_grad_(False)
    graph = assert_groups(model, image, {"inner.0.0": 6, "wide.0": 10}, {"stem.0": "requires_grad"})
    small = cut(model, graph.plan([range(3), range(4)]))
    for mine, theirs in zip(small.stem.parameters(), model.stem.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad


@pytest.mark.parametrize("why", ["requires_grad=False", "excluded"])
def test_a_model_that_is_frozen_as_a_whole_is_refused_with_the_reason(
    image: Tensor, why: str
) -> None:
    model = residual()
    if why == "excluded":
        graph = trace(model, image, exclude=["stem", "inner", "wide"])
    else:
        graph = trace(model.requires_grad_(False), image)
    assert graph.groups == ()
    with pytest.raises(BudgetError, match=f"(?s)everything is frozen.*{why}"):
        p2d.plan(graph, budget={"macs": 0.5})


def test_classes_of_a_convolutional_classifier_are_never_cut(image: Tensor) -> None:
    # As in SqueezeNet: the last convolution gives the classes, an average follows.
    model = nn.Sequential(
        block(3, 12), nn.Dropout(), nn.Conv2d(12, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    graph = assert_groups(model, image, {"0.0": 12}, {"2": "reaches the model's output"})
    small = cut(model, p2d.plan(graph, budget={"macs": 0.4}, round_to=1))
    assert run(small, image).shape == (2, 10)


@pytest.mark.parametrize(("groups", "channels"), [(4, 32), (2, 32), (32, 32)])
def test_grouped_convolutions_are_rounded_and_not_passed_over(
    image: Tensor, groups: int, channels: int
) -> None:
    model = nn.Sequential(
        block(3, channels),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        nn.BatchNorm2d(channels),
        block(channels, channels),
        nn.Conv2d(channels, 4, 1),
    )
    graph = trace(randomize_norms(model), image)
    small = cut(model, p2d.plan(graph, "l1", budget={"channels": 0.5}, round_to=8))
    assert (small[1].in_channels, small[1].out_channels) == (16, 16)
    assert small[1].groups in (groups, groups // 2)
    assert small[0][0].out_channels == small[3][0].out_channels == 16
    assert run(small, image).shape == (2, 4, 16, 16)


# Large graphs: work that grows with the model and not with the paths through it.


def forward_runs(model: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a trace runs the model or a copy of it; the model must be a Net."""
    runs = 0
    whole = Net.forward

    def counting(net: Net, *args: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        return whole(net, *args, **named)

    monkeypatch.setattr(Net, "forward", counting)
    graph = trace(model, inputs)
    monkeypatch.setattr(Net, "forward", whole)
    assert graph.groups
    return runs


def dense(net: nn.Module, x: Tensor) -> Tensor:
    maps = [net.stem(x)]
    for layer in net.layers:
        maps.append(layer(torch.cat(maps, 1)))
    head: Tensor = net.head(torch.cat(maps, 1))
    return head


def test_sixty_densely_connected_layers_take_a_few_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # There are 2 ** 60 paths through it.
    layers = nn.ModuleList(nn.Conv2d(8 + 3 * n, 3, 1) for n in range(60))
    model = Net(dense, stem=nn.Conv2d(3, 8, 1), layers=layers, head=nn.Conv2d(188, 4, 1))
    graph = trace(model, torch.randn(1, 3, 4, 4))
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes == {"stem": 8, **{f"layers.{n}": 3 for n in range(60)}}
    # A trace, and as many trials as tell 60 groups of one size apart.
    assert forward_runs(model, torch.randn(1, 3, 4, 4), monkeypatch) <= 2 + 6


def test_three_hundred_layers_take_a_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = [3, *(4 + n % 3 for n in range(299)), 2]
    layers = nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in pairwise(widths)])
    model = Net(lambda net, x: net.layers(x), layers=layers)
    assert len(trace(model, torch.randn(1, 3, 4, 4)).groups) == 299
    assert forward_runs(model, torch.randn(1, 3, 4, 4), monkeypatch) <= 2 + 8


# Nothing is shared between two models.


def test_two_graphs_and_plans_do_not_influence_each_other(image: Tensor) -> None:
    one, other = randomize_norms(residual()), randomize_norms(residual(), seed=1)
    alone = p2d.plan(trace(one, image), budget={"channels": 0.5}, round_to=1)
    first = trace(one, image, exclude=["wide"])
    second = trace(other, image)
    p2d.plan(second, budget={"channels": 0.3}, round_to=1)
    cut(other, second.plan(random_kept(second.groups)))
    assert {g.name for g in first.groups} == {"inner.0.0"}
    again = p2d.plan(trace(one, image), budget={"channels": 0.5}, round_to=1)
    assert again.to_json() == alone.to_json()
    for name, dims in alone.keep.items():
        for dim, kept in dims.items():
            assert np.array_equal(kept, again.keep[name][dim])


def test_auxiliary_heads_run_after_the_cut(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Any:
        x = net.stem(x)
        aux = F.adaptive_avg_pool2d(net.before(x), 2).flatten(1) if net.training else None
        x = net.head(net.body(x).mean((2, 3)))
        return (x, net.aux(aux)) if net.training else x

    model = Net(
        forward,
        stem=block(3, 8),
        before=block(8, 6),
        aux=nn.Linear(24, 4),
        body=block(8, 10),
        head=nn.Linear(10, 4),
    )
    graph = assert_groups(model, image, {"stem.0": 8, "before.0": 6, "body.0": 10})
    small = cut(model, graph.plan([range(3), range(2), range(5)])).train()
    assert small.aux.in_features == 2 * 4
    sum(answer.sum() for answer in small(image)).backward()
    assert all(p.grad is not None for p in small.parameters())
