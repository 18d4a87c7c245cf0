"""Biases and means make up for channels that go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Net, randomize_norms, run
from torch import Tensor, nn

from prune2deploy.channels import cut, trace
from prune2deploy.channels.compensation import compensate, lost


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_lost_is_what_the_layer_made_of_the_means(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, groups=groups, bias=False).double()
    means = torch.randn(6, dtype=torch.float64)
    constant = means.view(1, 6, 1, 1).expand(1, 6, 3, 3)
    torch.testing.assert_close(
        lost(layer.weight.detach(), means, groups), run(layer, constant)[0, :, 0, 0]
    )


def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def constant(model: nn.Module, norm: str) -> nn.Module:
    """Every second channel behind a norm becomes constant."""
    with torch.no_grad():
        model.get_parameter(f"{norm}.weight")[::2] = 0
        model.get_parameter(f"{norm}.bias")[::2] = torch.tensor([0.7, 0.2, 1.5, 0.9])
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_constants_go_without_a_trace_into_a_bias_or_a_norm(bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=bias)]
    layers += [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    model = constant(randomize_norms(nn.Sequential(*layers), 0), "1").double()
    graph = trace(model, images().double())
    want = run(model, images().double())
    kept = [np.arange(1, 8, 2), np.arange(6)]
    plain = run(cut(model, graph.plan(kept)), images().double())
    assert compensate(graph, kept, images().double().split(4)) == []
    small = cut(model, graph.plan(kept))
    torch.testing.assert_close(run(small, images().double()), want)
    assert not torch.allclose(plain, want, atol=1e-2)


def test_a_flatten_in_between_is_no_matter() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)]
    model = constant(randomize_norms(nn.Sequential(*layers), 0), "1").double()
    graph = trace(model, images().double())
    want = run(model, images().double())
    kept = [np.arange(1, 8, 2)]
    assert compensate(graph, kept, [images().double()]) == []
    torch.testing.assert_close(run(cut(model, graph.plan(kept)), images().double()), want)


def test_what_changes_is_made_up_for_on_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = trace(model, images())
    want = run(model, images()).mean((0, 2, 3))
    kept = [np.arange(4)]
    plain = run(cut(model, graph.plan(kept)), images()).mean((0, 2, 3))
    compensate(graph, kept, images().split(5))
    found = run(cut(model, graph.plan(kept)), images()).mean((0, 2, 3))
    torch.testing.assert_close(found, want)
    assert (plain - want).abs().max() > 0.01


def test_layers_with_nothing_to_compensate_with_are_named() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = net.last(torch.relu(net.first(x)))
        return result

    model = Net(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1, bias=False))
    graph = trace(model, images())
    assert compensate(graph, [np.arange(4)], [images()]) == ["last.weight"]
    assert compensate(graph, [np.arange(8)], [images()]) == []
