"""What a model's forward does in Python: tensors it makes, branches it takes, dice it throws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, assert_groups, conv, random_kept, run
from torch import Tensor, nn

from prune2deploy.channels import cut, trace

# Outputs within outputs, several inputs: see also test_trace.py.


@dataclass
class Boxes:
    large: Tensor
    rest: dict[str, tuple[Tensor, ...]]


def test_dataclasses_in_tuples_in_dictionaries_are_looked_into(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Any:
        x = net.stem(x)
        return {"found": ("text", Boxes(net.a(x), {"small": (net.b(x), net.c(x))})), "loss": None}

    model = Net(forward, stem=conv(3, 8), a=conv(8, 5), b=conv(8, 6), c=conv(8, 7))
    graph = trace(model, image)
    assert [g.name for g in graph.groups] == ["stem"]
    assert {f.name: f.size for f in graph.frozen} == {"a": 5, "b": 6, "c": 7}
    small = cut(model, graph.plan([range(3)]))
    assert small(image)["found"][1].rest["small"][1].shape == (2, 7, 12, 12)


def test_inputs_of_different_kinds_and_widths_meet(image: Tensor) -> None:
    def forward(net: nn.Module, rgb: Tensor, depth: Tensor, state: Tensor) -> Tensor:
        wide = F.interpolate(net.depth(depth), size=rgb.shape[-2:])
        return net.head(net.rgb(rgb) + wide + net.state(state)[:, :, None, None])

    model = Net(forward, rgb=conv(3, 8), depth=conv(5, 8), state=nn.Linear(7, 8), head=conv(8, 4))
    inputs = (image, torch.randn(2, 5, 6, 6), torch.randn(2, 7))
    assert_groups(model, inputs, {"rgb": 8})


# Tensors that forward makes.


def with_coordinates(x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(
        torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij"
    )
    grid = torch.stack([rows, columns]).to(x) / 12
    return torch.cat([x, grid.expand(len(x), -1, -1, -1)], 1)


@pytest.mark.parametrize(
    ("step", "width"),
    [
        (with_coordinates, 10),
        (lambda x: x.new_zeros(x.shape) + x, 8),
        (lambda x: torch.maximum(x, torch.full_like(x, 0.1)), 8),
        (lambda x: x + torch.zeros(x.shape[0], 1, *x.shape[2:]), 8),
        (lambda x: torch.cat([x, x.new_zeros(len(x), 2, 12, 12)], 1), 10),
    ],
    ids=["grid", "new_zeros", "full_like", "one channel", "beside"],
)
def test_tensors_made_in_forward_leave_the_channels_free(
    image: Tensor, step: Callable[[Tensor], Tensor], width: int
) -> None:
    model = Net(lambda net, x: net.head(step(net.stem(x))), stem=conv(3, 8), head=conv(width, 4))
    assert_groups(model, image, {"stem": 8})


def test_a_tensor_made_with_the_computed_width_freezes_what_is_added_to_it(image: Tensor) -> None:
    # A run shows the length of torch.zeros and not where it came from.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(torch.zeros(x.shape) + x)

    reason = "with values that cannot be removed"
    assert_groups(Net(forward, stem=conv(3, 8), head=conv(8, 4)), image, {}, {"stem": reason})


def test_one_map_expanded_over_all_channels_ties_nothing(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x, gate = net.stem(x), net.gate(x)
        return net.head(x * gate.expand_as(x) + gate.expand(-1, x.shape[1], -1, -1))

    model = Net(forward, stem=conv(3, 8), gate=conv(3, 1), head=conv(8, 4))
    assert_groups(model, image, {"stem": 8})


def test_an_expansion_to_a_literal_width_keeps_the_channels(image: Tensor) -> None:
    model = Net(
        lambda net, x: net.head(net.stem(x) * net.gate(x).expand(-1, 8, -1, -1)),
        stem=conv(3, 8),
        gate=conv(3, 1),
        head=conv(8, 4),
    )
    assert_groups(model, image, {}, {"stem": "the model's code does not allow it"})


# Branches.


class Branching(nn.Module):
    """Takes its way by the size of the image and by a flag."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.stem, self.extra = conv(3, 8), conv(8, 6)
        self.head = conv(6 if deep else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        if self.deep:
            x = self.extra(x)
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize(("deep", "sizes"), [(True, {"stem": 8, "extra": 6}), (False, {"stem": 8})])
def test_branches_on_a_shape_and_a_flag_are_followed(
    image: Tensor, deep: bool, sizes: dict[str, int]
) -> None:
    graph = assert_groups(Branching(deep), image, sizes)
    small = cut(graph.model, graph.plan(random_kept(graph.groups)))
    # The other way past the pooling still works after the cut.
    assert run(small, image[:, :, :6, :6]).shape == (2, 4, 6, 6)


def test_what_a_flag_turns_off_is_not_touched(image: Tensor) -> None:
    graph = assert_groups(Branching(deep=False), image, {"stem": 8})
    small = cut(graph.model, graph.plan([range(3)]))
    assert small.extra.weight.shape == (6, 8, 1, 1)


def test_a_branch_on_the_number_of_channels_keeps_them(image: Tensor) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(2 * x if x.shape[1] < 8 else x)

    model = Net(forward, stem=conv(3, 8), head=conv(8, 4))
    assert_groups(model, image, {}, {"stem": "aten.mul runs where the whole model runs"})


# Chance: paths that are left out while training.


class DropPath(nn.Module):
    """Leaves out the path of some samples."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((len(x), 1, 1, 1)).bernoulli_(0.5)
        return x * kept.div_(0.5)


class Residual(nn.Module):
    """Three residual blocks; `aux` answers in train mode only, so train mode is traced too."""

    def __init__(self, drop_layers: bool) -> None:
        super().__init__()
        self.drop_layers = drop_layers
        self.stem = conv(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(8, 5), nn.ReLU(), conv(5, 8), DropPath()) for _ in range(3)
        )
        self.head, self.aux = conv(8, 4), conv(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            if not (self.training and self.drop_layers and torch.rand(()) < 0.5):
                x = x + block(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


@pytest.mark.parametrize("drop_layers", [False, True])
def test_stochastic_depth_leaves_every_block_free(image: Tensor, drop_layers: bool) -> None:
    model = Residual(drop_layers)
    widths = {"stem": 8, "blocks.0.0": 5, "blocks.1.0": 5, "blocks.2.0": 5}
    graph = assert_groups(model, image, widths)
    small = cut(model, graph.plan([range(5), range(3), range(2), range(4)])).train()
    for _ in range(4):
        scores, aux = small(image)
        assert (scores.shape[1], aux.shape[1]) == (4, 2)


def test_copies_of_one_channel_that_would_change_places_are_seen() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = nn.functional.pixel_unshuffle(net.conv(x), 2)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        result: Tensor = net.head(x)
        return result

    # Two channels make two halves of four; of one channel's four, the shuffle mixes two and two.
    model = Net(forward, conv=conv(3, 2), head=nn.Conv2d(8, 4, 1))
    graph = trace(model, torch.randn(2, 3, 8, 8))
    assert graph.groups == ()
    (reason,) = [f.reason for f in graph.frozen if f.name == "conv"]
    assert "one channel of two" in reason


def test_only_attributes_that_it_takes_follow() -> None:
    class Parts(nn.Module):
        """Two attributes must follow at once; a third has the same value by chance."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes = [6, 7]
            self.chance = 6
            self.widen = conv(3, 13)
            self.head = nn.Conv2d(13, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.split(self.widen(x), self.sizes, 1)
            result: Tensor = self.head(torch.cat([b, a], 1)) * self.chance
            return result

    graph = assert_groups(Parts(), torch.randn(2, 3, 8, 8), {"widen": 6, "widen#2": 7})
    assert {f.attribute for f in graph.followers} == {"sizes[0]", "sizes[1]"}
