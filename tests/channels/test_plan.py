"""Plans: to JSON and back, damaged files, and two cuts in one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_kept, randomize_norms
from torch import nn

from prune2deploy.channels import Choice, Plan, cut, trace
from prune2deploy.errors import ModelError
from prune2deploy.models.cifar_resnet import resnet20


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 6), nn.Linear(6, 4)
    )


def plan(notes: tuple[str, ...] = ("coarse",)) -> Plan:
    return trace(network(), torch.randn(2, 3, 8, 8)).plan([[1, 3, 6], range(6)], notes)


def same(a: Plan, b: Plan) -> bool:
    keep = [
        {(n, d): ids.tolist() for n, dims in p.keep.items() for d, ids in dims.items()}
        for p in (a, b)
    ]
    return keep[0] == keep[1] and (a.shapes, a.choices, a.notes) == (b.shapes, b.choices, b.notes)


def test_a_plan_survives_json() -> None:
    before = plan()
    after = Plan.from_json(before.to_json())
    assert same(before, after)
    assert after.choices == (Choice("0", 8, 3), Choice("3", 6, 6))
    assert after.notes == ("coarse",)
    assert after.shapes["3.weight"] == (6, 288)


def test_a_plan_names_only_what_it_cuts() -> None:
    one = plan()
    assert {(n, d) for n, dims in one.keep.items() for d in dims} == {
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("3.weight", 1),
    }
    assert one.new_shape("0.weight") == (3, 3, 3, 3)
    assert one.new_shape("3.weight") == (6, 3 * 36)
    assert not one.removes_nothing


def damaged(change: Any) -> str:
    document = json.loads(plan().to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        plan().to_json()[:-40],
        damaged(lambda d: d.pop("shapes")),
        damaged(lambda d: d["shapes"].pop("0.weight")),
        damaged(lambda d: d.update(keep=[1, 2])),
        damaged(lambda d: d["keep"].update({"0.weight": {"zero": [1]}})),
        damaged(lambda d: d["keep"].update({"0.weight": {"0": ["a"]}})),
        damaged(lambda d: d.update(choices=[["0", 8]])),
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="not a plan of prune2deploy"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    "entry",
    [
        {"0": []},
        {"0": [1, 8]},
        {"0": [-1, 2]},
        {"0": [3, 1]},
        {"0": [1, 1]},
        {"0": [[1], [2]]},
        {"4": [0]},
        {"-1": [0]},
    ],
    ids=str,
)
def test_impossible_indices_are_refused(entry: dict[str, Any]) -> None:
    text = damaged(lambda d: d["keep"].update({"0.weight": entry}))
    with pytest.raises(ModelError, match=r"impossible indices of dimension .* of '0.weight'"):
        Plan.from_json(text)


def test_a_plan_of_another_version_is_refused() -> None:
    with pytest.raises(ModelError, match="format 99, expected 3"):
        Plan.from_json(damaged(lambda d: d.update(format=99)))


def test_two_cuts_are_one_composed_cut() -> None:
    model = randomize_norms(resnet20())
    image = torch.randn(1, 3, 32, 32)
    graph = trace(model, image)
    first = graph.plan([np.arange(0, g.size, 2) for g in graph.groups], ["first"])
    once = cut(model, first)
    again = trace(once, image)
    second = again.plan(random_kept(again.groups), ["second"])
    twice = cut(once, second)

    both = first.then(second)
    direct = cut(model, both)
    for name, tensor in twice.state_dict().items():
        assert torch.equal(direct.state_dict()[name], tensor)
    assert both.notes == ("first", "second")
    widths = {g.name: g.size for g in graph.groups}
    left = {g.name: g.size for g in trace(twice, image).groups}
    for choice in both.choices:
        assert choice.channels == widths[choice.group]
        assert choice.kept == left.get(choice.group, 1)  # a single channel is no group


def test_a_second_cut_may_touch_what_the_first_left_whole() -> None:
    model = network()
    image = torch.randn(2, 3, 8, 8)
    first = trace(model, image).plan([range(8), [0, 2, 5]])
    once = cut(model, first)
    second = trace(once, image).plan([[1, 7], [0, 2]])
    both = first.then(second)
    assert both.keep["3.weight"][0].tolist() == [0, 5]
    assert both.keep["0.weight"][0].tolist() == [1, 7]
    assert both.choices == (Choice("0", 8, 2), Choice("3", 6, 2))
    torch.testing.assert_close(cut(model, both)[3].weight, cut(once, second)[3].weight)


def test_a_second_plan_for_another_width_is_refused() -> None:
    model = network()
    image = torch.randn(2, 3, 8, 8)
    graph = trace(model, image)
    first = graph.plan([[0, 1, 2], range(6)])
    with pytest.raises(ModelError, match=r"expects '0.weight' with shape \(8, .*leaves \(3, "):
        first.then(graph.plan([[4], range(6)]))
