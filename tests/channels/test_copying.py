"""Copies of modules: what copy.deepcopy would give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from networks import run
from torch import nn

from prune2deploy.channels.copying import copied
from prune2deploy.channels.labels import tensors_of


class Odd(nn.Module):
    """Holds what a plain table of submodules does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.again = self.first
        self.aside = [self.first, {"norm": nn.BatchNorm1d(4)}]
        self.weight = self.first.weight
        self.sizes = [3, 4]
        self.first.sizes = self.sizes
        self.kernel, self.named = (2, 2), {"inner": [1, (2, nn.ReLU())]}
        self.nothing = None
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.register_buffer("empty", None)


class OwnWay(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> OwnWay:
        twin = OwnWay(self.in_features, self.out_features)
        twin.load_state_dict(self.state_dict())
        twin.note = "copied its own way"
        return twin


def test_a_copy_shares_nothing_and_repeats_what_was_shared() -> None:
    model = Odd()
    handle = model.first.register_forward_hook(lambda *_: None)
    twin = copied(model, {})
    assert isinstance(twin, Odd)
    assert twin.again is twin.first is twin.aside[0] is not model.first
    assert twin.weight is twin.first.weight is not model.weight
    assert twin.sizes is twin.first.sizes is not model.sizes
    assert (twin.sizes, twin.kernel) == ([3, 4], (2, 2))
    assert twin.named["inner"][1][1] is not model.named["inner"][1][1]
    assert twin.aside[1]["norm"] is not model.aside[1]["norm"]
    assert vars(twin).keys() == vars(model).keys()
    assert twin._non_persistent_buffers_set == {"table"}
    assert len(twin.first._forward_hooks) == 1
    handle.remove()
    assert len(twin.first._forward_hooks) == 1
    twin.register_forward_hook(lambda *_: None)
    assert not model._forward_hooks


def test_what_stands_in_for_a_tensor_does_so_everywhere() -> None:
    model = Odd()
    other = nn.Parameter(torch.zeros(2, 3))
    twin = copied(model, {id(model.weight): other})
    assert isinstance(twin, Odd)
    assert twin.weight is twin.first.weight is other


def test_a_class_that_copies_itself_does() -> None:
    twin = copied(nn.Sequential(OwnWay(3, 2)), {})
    assert isinstance(twin, nn.Sequential)
    assert twin[0].note == "copied its own way"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_t", "googlenet"])
def test_real_models_are_copied_as_deepcopy_does(name: str) -> None:
    slow = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **slow)
    mine, usual = copied(model, {}), copy.deepcopy(model)
    assert repr(mine) == repr(usual)
    for a, b in zip(mine.modules(), usual.modules(), strict=True):
        assert type(a) is type(b)
        assert vars(a).keys() == vars(b).keys()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(run(mine, image), run(model, image))
    assert not {id(x) for x in tensors_of(mine).values()} & {
        id(x) for x in tensors_of(model).values()
    }


def test_tensors_come_by_first_name_parameters_before_buffers() -> None:
    model = Odd()
    model.register_buffer("late", model.first.weight.detach())
    assert list(tensors_of(model)) == ["weight", "first.bias", "table", "late"]
