"""Trials: what breaks a forward pass is found and frozen, the rest stays free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.channels import cut, trace, try_plan
from prune2deploy.channels.verify import TOLERANCE, Trial, _compare


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
