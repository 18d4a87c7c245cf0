"""Scores from feature maps of real images, beside the formula computed slowly."""

from __future__ import annotations

import torch
from scoring import make
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prune2deploy.channels import trace
from prune2deploy.methods import Context
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
