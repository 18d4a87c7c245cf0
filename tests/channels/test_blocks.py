"""Residual blocks are found by what they do, and go without a trace."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import randomize_norms, run
from torch import Tensor, nn
from torchvision import models

from prune2deploy.channels import Plan, cut, load_pruned, save_pruned, trace
from prune2deploy.channels.blocks import Block, find_blocks, plan_without, zeroed_blocks
from prune2deploy.errors import ModelError
from prune2deploy.models.cifar_preact_resnet import CifarPreActResNet
from prune2deploy.models.cifar_resnet import resnet20
from prune2deploy.models.cifar_vgg import vgg16_bn


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_blocks_of_a_resnet_are_those_with_a_plain_shortcut() -> None:
    blocks = find_blocks(randomize_norms(resnet20(), 0), image())
    stages = ("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2")
    assert [b.name for b in blocks] == list(stages)
    assert {b.last for b in blocks} == {f"{name}.bn2" for name in stages}


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (CifarPreActResNet(2), 3),
        (models.resnet18(), 5),  # adds in place
        (models.resnet50(), 12),
        (models.mobilenet_v2(), 10),
        (models.convnext_tiny(), 18),
        (vgg16_bn(), 0),
    ],
    ids=["preact", "resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vgg16"],
)
def test_without_blocks_a_model_does_what_it_did_with_zero_branches(
    model: nn.Module, count: int
) -> None:
    model = randomize_norms(model, 0).double()
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    x = image(64).double()
    before = copy.deepcopy(model.state_dict())
    blocks = find_blocks(model, x)
    assert len(blocks) == count
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if not blocks:
        return
    some = blocks[::2]
    small = cut(model, plan_without(some))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert [b.name for b in find_blocks(small, x)] == [b.name for b in blocks[1::2]]
    want = zeroed_blocks(model, x, some)
    torch.testing.assert_close(run(small, x), want, rtol=1e-9, atol=1e-9)
    # and it can be cut further
    graph = trace(small, x)
    assert graph.groups


def test_a_plan_with_blocks_goes_to_disk_and_is_continued(tmp_path: Path) -> None:
    model = randomize_norms(resnet20(), 0)
    blocks = [b for b in find_blocks(model, image()) if b.name in ("layer1.1", "layer3.2")]
    first = plan_without(blocks, ["two blocks"])
    assert not first.removes_nothing
    small = cut(model, first)
    graph = trace(small, image())
    second = graph.plan([range(g.size // 2) for g in graph.groups])
    smaller = cut(small, second)
    whole = Plan.from_json(first.then(second).to_json())
    assert whole.blocks == ("layer1.1", "layer3.2")
    torch.testing.assert_close(run(cut(model, whole), image()), run(smaller, image()))
    save_pruned(smaller, whole, tmp_path / "w.safetensors", tmp_path / "plan.json")
    again = load_pruned(resnet20(), tmp_path / "w.safetensors", tmp_path / "plan.json")
    torch.testing.assert_close(run(again, image()), run(smaller, image()))


def test_blocks_may_go_after_channels() -> None:
    model = randomize_norms(resnet20(), 0)
    graph = trace(model, image())
    first = graph.plan([range(g.size // 2) for g in graph.groups])
    small = cut(model, first)
    second = plan_without([b for b in find_blocks(small, image()) if b.name == "layer2.1"])
    whole = first.then(second)
    assert not any(name.startswith("layer2.1.") for name in whole.keep)
    torch.testing.assert_close(run(cut(model, whole), image()), run(cut(small, second), image()))


def test_a_block_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"removes the block 'layer9\.0'"):
        cut(resnet20(), plan_without([Block("layer9.0", "layer9.0.bn2")]))
