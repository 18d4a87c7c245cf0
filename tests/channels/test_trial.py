"""Trials: what breaks a forward pass is found and frozen, the rest stays free."""

from __future__ import annotations

from itertools import pairwise

import torch
from networks import Net, assert_groups
from torch import Tensor, nn

from prune2deploy.channels import trace


def test_a_width_written_into_the_forward_freezes_its_group_only() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.b(net.a(x).relu())
        return net.head(net.c(x.view(2, 6 * 16)))

    model = Net(
        forward,
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 6, 1),
        c=nn.Linear(96, 10),
        head=nn.Linear(10, 4),
    )
    graph = assert_groups(model, torch.randn(2, 3, 4, 4), {"a": 8, "c": 10})
    (reason,) = (f.reason for f in graph.frozen if f.name == "b")
    assert "the model's code does not allow it: channels/test_trial.py:" in reason
    assert "`return net.head(net.c(x.view(2, 6 * 16)))`" in reason
    assert "shape '[2, 96]' is invalid" in reason
    assert "If the lengths there come from the tensors themselves (x.shape, or -1)" in reason


def test_several_broken_groups_are_all_found() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        for number, layer in enumerate(net.layers):
            x = layer(x)
            if number in (1, 4):
                x = x.view(2, 6, 4, 4)
        return x

    widths = [3, 5, 6, 7, 8, 6, 9, 2]
    layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
    graph = trace(Net(forward, layers=layers), torch.randn(2, 3, 4, 4))
    assert [g.name for g in graph.groups] == ["layers.0", "layers.2", "layers.3", "layers.5"]
    broken = {f.name for f in graph.frozen if "does not allow it" in f.reason}
    assert broken == {"layers.1", "layers.4"}


def test_a_cut_that_runs_and_gives_other_numbers_is_found() -> None:
    # Divides by the number of channels: runs at any width, and is not the zeroed model.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.head(x / x.shape[1])

    model = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1, bias=False))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert graph.groups == ()
    (reason,) = (f.reason for f in graph.frozen if f.name == "a")
    assert "a number in aten.div changes with the width, from 8 to 6" in reason
    assert "computed once, in __init__, and kept in an attribute, it can be cut" in reason


def test_of_groups_that_break_only_together_one_stays_free() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        a, b = net.a(x), net.b(x)
        if a.shape[1] < 8 and b.shape[1] < 8:
            raise RuntimeError("one of them must stay")
        return net.head(torch.cat([a, b], 1))

    model = Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), head=nn.Conv2d(16, 4, 1))
    graph = assert_groups(model, torch.randn(2, 3, 4, 4), {"a": 8})
    (reason,) = (f.reason for f in graph.frozen if f.name == "b")
    assert "RuntimeError: one of them must stay" in reason


def test_a_number_that_only_the_cut_model_lacks_is_found() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.head(x) + (0.0 if x.shape[1] == 8 else float("nan"))

    model = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1))
    assert trace(model, torch.randn(2, 3, 4, 4)).groups == ()


def test_a_number_that_follows_the_width_of_two_channels_is_found() -> None:
    # Cut to a single channel, whose dimension carries no labels any more.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.head(x * x.shape[1] ** -0.5)

    model = Net(forward, a=nn.Conv2d(3, 2, 1), head=nn.Conv2d(2, 4, 1))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert graph.groups == ()
    (reason,) = (f.reason for f in graph.frozen if f.name == "a")
    assert "a number in aten.mul changes with the width" in reason
