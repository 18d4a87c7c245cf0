"""The engine on the real models that the project promises to handle."""

from __future__ import annotations

import pytest
import torch
import torchvision
from networks import (
    assert_cut_is_exact,
    counted_macs,
    counts,
    parameters,
    random_kept,
    randomize_norms,
)
from torch import nn

from prune2deploy.channels import cut, trace
from prune2deploy.models.cifar_resnet import resnet20

MODELS = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "googlenet",
    "inception_v3",
    "squeezenet1_0",
    "mnasnet1_0",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "cifar_resnet20",
)
# Inception's auxiliary head needs the full image.
SIZES = {"inception_v3": 299, "cifar_resnet20": 32}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cifar_resnet20":
        model: nn.Module = resnet20()
    elif name in ("googlenet", "inception_v3"):
        model = getattr(torchvision.models, name)(weights=None, init_weights=False)
    else:
        model = getattr(torchvision.models, name)(weights=None)
    return randomize_norms(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_random_cut_is_exact_and_costs_what_the_graph_says(name: str) -> None:
    model = build(name)
    size = SIZES.get(name, 64)
    image = torch.randn(1, 3, size, size)
    graph = trace(model, image)
    assert graph.unknown_ops == {}
    assert graph.cost.params(graph.full) == parameters(model)

    kept = random_kept(graph.groups)
    small = assert_cut_is_exact(model, image, graph, graph.plan(kept))
    # An independent counter, and a second trace: the cut model is a model like any other.
    assert graph.cost.macs(counts(kept)) == counted_macs(small, image)
    again = trace(small, image)
    assert again.cost.macs(again.full) == graph.cost.macs(counts(kept))
    assert again.cost.params(again.full) == graph.cost.params(counts(kept))


@pytest.mark.parametrize(
    ("name", "groups", "channels"),
    [
        # 4 stages whose blocks share their output, and the inner layer of each of 8 blocks.
        ("resnet18", 4 + 8, (64 + 128 + 256 + 512) * 3),
        # 4 stages; two inner layers in each of 3 + 4 + 6 + 3 blocks; the stem.
        ("resnet50", 4 + 2 * 16 + 1, 3840 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512) + 64),
        ("vgg16_bn", 13 + 2, 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096),
    ],
)
def test_the_groups_are_those_of_the_architecture(name: str, groups: int, channels: int) -> None:
    graph = trace(build(name), torch.randn(1, 3, 64, 64))
    assert len(graph.groups) == groups
    assert sum(g.size for g in graph.groups) == channels
    assert [(f.size, f.reason) for f in graph.frozen] == [(1000, "reaches the model's output")]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_still_train_after_a_cut(name: str) -> None:
    model = build(name)
    size = SIZES.get(name, 64)
    graph = trace(model, torch.randn(1, 3, size, size))
    small = cut(model, graph.plan(random_kept(graph.groups))).train()
    outputs = small(torch.randn(2, 3, size, size))
    assert all(o.shape == (2, 1000) for o in outputs)
    assert len(outputs) == (3 if name == "googlenet" else 2)
    sum(o.sum() for o in outputs).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_option_a_shortcuts_keep_the_channels_beside_the_padding() -> None:
    graph = trace(build("cifar_resnet20"), torch.randn(1, 3, 32, 32))
    sizes = {g.name: g.size for g in graph.groups}
    # The 16 channels of stage 1 go through all three stages; what padding filled is fixed.
    assert sizes["conv1"] == 16
    assert {n: s for n, s in sizes.items() if n != "conv1"} == {
        f"layer{stage}.{block}.conv1": 16 * 2 ** (stage - 1)
        for stage in (1, 2, 3)
        for block in range(3)
    }
    assert sorted(f.size for f in graph.frozen) == [10, 16, 32]
