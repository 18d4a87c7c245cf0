"""Groups: names, order, what counts as interchangeable, and the activations they appear in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Net, randomize_norms
from torch import Tensor, nn

from prune2deploy.channels import Role, trace
from prune2deploy.channels.groups import matches
from prune2deploy.models.cifar_resnet import resnet20


@pytest.mark.parametrize(
    ("tensor", "pattern", "expected"),
    [
        ("layer1.0.conv1.weight", "layer1", True),
        ("layer1.0.conv1.weight", "layer1.0", True),
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight", True),
        ("layer1.0.conv1.weight", "layer?.*.conv1", True),
        ("layer1.0.conv1.weight", "*.conv1", True),
        ("layer1.0.conv1.weight", "conv1", False),
        ("layer10.0.conv1.weight", "layer1", False),
        ("layer1.0.conv1.weight", "Layer1", False),
        ("weight", "*", True),
    ],
)
def test_a_pattern_names_a_tensor_or_a_module_around_it(
    tensor: str, pattern: str, expected: bool
) -> None:
    assert matches(tensor, pattern) is expected


def test_names_are_unique_and_in_the_order_of_the_model() -> None:
    model = resnet20()
    graph = trace(model, torch.randn(1, 3, 32, 32))
    names = [g.name for g in graph.groups]
    assert len(set(names)) == len(names)
    modules = [n for n, _ in model.named_modules()]
    assert names == sorted(names, key=modules.index)


def test_a_layer_that_is_read_twice_owns_columns_in_both_places() -> None:
    model = Net(
        lambda net, x: net.head(torch.cat([net.a(x), net.a(x + 1).relu()], 1)),
        a=nn.Conv2d(3, 6, 1),
        head=nn.Conv2d(12, 4, 1),
    )
    (group,) = trace(model, torch.randn(2, 3, 8, 8)).groups
    columns = next(s for s in group.slots if s.tensor == "head.weight")
    assert columns.index.tolist() == [[c, c + 6] for c in range(6)]


def test_one_layer_with_two_kinds_of_channels_gives_two_groups() -> None:
    # Channels 0-3 of `wide` are added to `other`, channels 4-11 to `stem`.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(net.wide(x) + torch.cat([net.other(x), net.stem(x)], 1))

    model = Net(
        forward,
        wide=nn.Conv2d(3, 12, 1),
        other=nn.Conv2d(3, 4, 1),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(12, 4, 1),
    )
    graph = trace(model, torch.randn(2, 3, 8, 8))
    assert [(g.name, g.size) for g in graph.groups] == [("wide", 4), ("wide#2", 8)]
    # A width of `wide` is made by both, so each is rounded by itself.
    assert graph.width_steps(1, 4) == [8, 4]


def test_every_entry_of_a_parameter_belongs_to_one_channel_at_most() -> None:
    graph = trace(resnet20(), torch.randn(1, 3, 32, 32))
    owned: dict[tuple[str, int], list[int]] = {}
    for group in graph.groups:
        for slot in group.slots:
            assert slot.index.shape[0] == group.size
            owned.setdefault((slot.tensor, slot.dim), []).extend(slot.index.ravel().tolist())
    for (name, dim), entries in owned.items():
        assert len(set(entries)) == len(entries)
        assert max(entries) < graph.shapes[name][dim]


def test_roles_say_what_an_entry_is_for() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    )
    (group,) = trace(randomize_norms(model), torch.randn(2, 3, 8, 8)).groups
    assert [s.tensor for s in group.of_role(Role.PRODUCER)] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    assert [s.tensor for s in group.of_role(Role.SCALE)] == ["1.weight"]
    assert [(s.tensor, s.dim) for s in group.of_role(Role.CONSUMER)] == [("3.weight", 1)]
    assert group.layers == ["0", "1", "2", "3"]


def test_a_group_has_one_tap_per_tensor_that_is_read() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        return net.a(x) + net.b(x) + net.c(x.sigmoid())

    model = Net(
        forward,
        stem=nn.Conv2d(3, 8, 1),
        a=nn.Conv2d(8, 4, 1),
        b=nn.Conv2d(8, 4, 1),
        c=nn.Conv2d(8, 4, 1),
    )
    (group,) = trace(model, torch.randn(2, 3, 8, 8)).groups
    # a and b read one tensor, c another: contractions number 1 and 3.
    assert [(t.site, t.dim) for t in group.taps] == [(1, 1), (3, 1)]
    assert all(np.array_equal(t.index, np.arange(8)[:, None]) for t in group.taps)


def test_a_tap_after_a_flatten_has_all_places_of_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 4))
    (group,) = trace(model, torch.randn(2, 3, 4, 4)).groups
    (tap,) = group.taps
    assert (tap.site, tap.dim) == (1, 1)
    assert tap.index.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(8)]
