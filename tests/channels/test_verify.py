"""Trials: what breaks a forward pass is found and frozen, the rest stays free."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from networks import Net, assert_groups
from torch import Tensor, nn

from prune2deploy.channels import cut, trace, try_plan
from prune2deploy.channels.verify import TOLERANCE, Trial, _compare


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
    assert "cutting it breaks the forward pass" in reason
    assert "shape '[2, 96]' is invalid" in reason


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
    broken = {f.name for f in graph.frozen if "breaks the forward pass" in f.reason}
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
    assert "output differs by" in reason


def test_groups_that_break_only_together_are_all_frozen() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        a, b = net.a(x), net.b(x)
        if a.shape[1] < 8 and b.shape[1] < 8:
            raise RuntimeError("one of them must stay")
        return net.head(torch.cat([a, b], 1))

    model = Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), head=nn.Conv2d(16, 4, 1))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert graph.groups == ()
    for frozen in graph.frozen[-2:]:
        assert "together with others: RuntimeError: one of them must stay" in frozen.reason


def test_a_number_that_only_the_cut_model_lacks_is_found() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.head(x) + (0.0 if x.shape[1] == 8 else float("nan"))

    model = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1))
    assert trace(model, torch.randn(2, 3, 4, 4)).groups == ()


def test_a_trial_of_a_good_plan_holds_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 4, 4)
    plan = trace(model, x).plan([[1, 5]])
    trial = try_plan(model, plan, x)
    assert trial.held
    assert trial.error is None
    assert trial.difference <= 1e-6
    assert model.training
    assert model[0].out_channels == 8


def test_a_trial_reports_the_models_own_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 4, 4)
    plan = trace(model, x).plan([[1, 5]])
    trial = try_plan(model, plan, x[:, :2])
    assert not trial.held
    assert trial.error is not None
    assert trial.error.startswith("RuntimeError")


def test_outputs_of_a_cut_dataclass_are_compared() -> None:
    @dataclass
    class Answer:
        scores: Tensor

    assert _compare(Answer(torch.ones(2)), Answer(torch.tensor([1.0, 3.0]))).difference == 2 / 3


@pytest.mark.parametrize(
    ("got", "want", "difference", "held"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, True),
        ([1.0, 2.0], [1.0, 4.0], 0.5, False),
        ([0.0, 0.5], [0.0, 0.0], 0.5, False),  # nothing to be relative to
        ([1.0, float("nan")], [1.0, 2.0], float("inf"), False),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0, True),
        ([1.0, 2.0], [1.0, float("inf")], float("inf"), False),
        ([float("nan")] * 2, [float("nan")] * 2, float("nan"), True),  # proves nothing
    ],
)
def test_differences_are_relative_to_the_largest_value(
    got: list[float], want: list[float], difference: float, held: bool
) -> None:
    trial = _compare(torch.tensor(got), torch.tensor(want))
    assert trial.difference == pytest.approx(difference, nan_ok=True)
    assert trial.held is held


@pytest.mark.parametrize(
    ("got", "want"),
    [(torch.ones(2, 3), torch.ones(2, 4)), ((torch.ones(2), torch.ones(1)), (torch.ones(2),))],
)
def test_another_shape_does_not_hold(got: Any, want: Any) -> None:
    trial = _compare(got, want)
    assert not trial.held
    assert "the output's shape changes" in str(trial.error)


def test_the_tolerance_lies_between_rounding_and_a_wrong_channel() -> None:
    assert Trial(TOLERANCE).held
    assert not Trial(2 * TOLERANCE).held
    # One wrong channel of 1000, in a trained network's output, is far above it.
    model = nn.Sequential(nn.Conv2d(3, 1000, 1), nn.ReLU(), nn.Conv2d(1000, 4, 1))
    x = torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    right = cut(model, graph.plan([range(500)]))
    wrong = cut(model, graph.plan([[*range(499), 999]]))
    with torch.no_grad():
        assert not _compare(wrong(x), right(x)).held
