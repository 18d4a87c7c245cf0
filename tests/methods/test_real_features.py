"""Scores from feature maps of real images, beside the formula computed slowly."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from scoring import make
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prune2deploy.channels import trace
from prune2deploy.channels.activations import read_contractions, reading_sites
from prune2deploy.methods import Context
from prune2deploy.methods.thinet import contributions, discard_order
from prune2deploy.models.convnet import convnet


def digits() -> Tensor:
    return torch.from_numpy(load_digits().images[:40]).float()[:, None] / 16


def trained() -> nn.Module:
    """A network that has seen the digits, if only for some steps."""
    torch.manual_seed(0)
    model = convnet(widths=[8, 8, 12, 12])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    targets = torch.from_numpy(load_digits().target[:40])
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits()), targets).backward()
        optimizer.step()
    return model.eval()


def test_chip_is_the_loop_of_singular_values_on_real_feature_maps() -> None:
    model = trained()
    graph = trace(model, digits()[:2])
    scores = make("chip", images=40, batch_size=16).score(
        Context(graph, lambda count, size: digits().split(size))
    )
    read: dict[str, Tensor] = {}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: read.update({name: inputs[0].detach().double()})
        )
    with torch.no_grad():
        model(digits())
    assert [g.name for g in graph.groups] == layers
    for score, reader in zip(scores[:-1], layers[1:], strict=True):
        assert score is not None
        maps = read[reader].flatten(2)
        expected = torch.zeros(maps.shape[1], dtype=torch.float64)
        for one in maps:
            whole = torch.linalg.svdvals(one).sum()
            for channel in range(len(one)):
                without = one.clone()
                without[channel] = 0
                expected[channel] += whole - torch.linalg.svdvals(without).sum()
        torch.testing.assert_close(score, expected / len(maps), rtol=1e-4, atol=1e-6)
        assert score.argsort().tolist() == expected.argsort().tolist()


def test_thinet_discards_what_adds_least_to_outputs_of_real_images() -> None:
    model = trained()
    graph = trace(model, digits()[:2])
    readers = reading_sites(graph)
    found: list[Tensor] = []
    read_contractions(
        model,
        digits(),
        readers,
        lambda _, layer: found.append(contributions(layer, 200, torch.Generator().manual_seed(2))),
    )
    assert len(found) == len(graph.groups)
    for x in found:
        gone: list[int] = []
        for _ in range(x.shape[1]):
            left = [c for c in range(x.shape[1]) if c not in gone]
            gone.append(min(left, key=lambda c: float(x[:, [*gone, c]].sum(dim=1).square().sum())))
        assert discard_order(x.mT @ x) == gone


def test_taylor_is_the_squared_derivative_by_gates_on_real_feature_maps() -> None:
    model = trained()
    graph = trace(model, digits()[:2])
    targets = torch.from_numpy(load_digits().target[:40])
    scores = make("taylor", images=40, batch_size=20).score(
        Context(
            graph,
            lambda count, size: digits().split(size),
            lambda network, count, size: (
                F.cross_entropy(network(images), wanted)
                for images, wanted in zip(digits().split(size), targets.split(size), strict=True)
            ),
        )
    )
    slow = copy.deepcopy(model).double().eval()
    norms = [m for m in slow.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(graph.groups)
    gates = [torch.ones(n.num_features, dtype=torch.float64, requires_grad=True) for n in norms]
    for norm, gate in zip(norms, gates, strict=True):
        norm.register_forward_hook(lambda _, __, out, gate=gate: out * gate[:, None, None])
    expected = [torch.zeros(n.num_features, dtype=torch.float64) for n in norms]
    for images, wanted in zip(digits().split(20), targets.split(20), strict=True):
        loss = F.cross_entropy(slow(images.double()), wanted)
        for total, gradient in zip(expected, torch.autograd.grad(loss, gates), strict=True):
            total += gradient.square() / 2
    for score, one in zip(scores, expected, strict=True):
        assert score is not None
        torch.testing.assert_close(score, one, rtol=1e-4, atol=1e-12)
        assert score.argsort().tolist() == one.argsort().tolist()
