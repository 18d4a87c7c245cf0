"""Network slimming."""

from __future__ import annotations

import pytest
import torch
from networks import Net, randomize_norms
from scoring import batches, make, scores_of
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.network_slimming import add_subgradient


def test_the_subgradient_of_the_specification() -> None:
    gamma = nn.Parameter(torch.tensor([0.5, -0.2, 0.0]))
    add_subgradient(gamma, 1e-4)
    assert gamma.grad is None, "nothing to add to"
    gamma.grad = torch.zeros(3)
    add_subgradient(gamma, 1e-4)
    torch.testing.assert_close(gamma.grad, torch.tensor([1e-4, -1e-4, 0.0]), rtol=0, atol=0)


def test_the_score_is_the_size_of_the_scale(mixed: Graph) -> None:
    with torch.no_grad():
        mixed.model.get_parameter("norm4.weight")[:3] = torch.tensor([0.5, -0.75, 0.0])
    second = scores_of("network_slimming", mixed)[1]
    assert second is not None
    assert second[:3].tolist() == [0.5, 0.75, 0.0]


def test_the_penalty_is_added_to_real_gradients(mixed: Graph) -> None:
    model = mixed.model.train()
    with torch.no_grad():
        model.get_parameter("norm1.weight")[:3] = torch.tensor([-0.4, 0.0, 0.3])
    method = make("network_slimming", penalty=0.25)
    method.attach(mixed)
    model(batches(4, 4)[0]).square().mean().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert method.extra_loss() is None
    method.after_backward()
    for name, parameter in model.named_parameters():
        added = torch.zeros_like(parameter)
        if name.startswith("norm") and name.endswith("weight"):
            added = 0.25 * torch.sign(parameter.detach())
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, plain[name] + added)
    added = model.get_parameter("norm1.weight").grad - plain["norm1.weight"]
    torch.testing.assert_close(added[:3], torch.tensor([-0.25, 0.0, 0.25]), atol=1e-6, rtol=0)


def test_scales_of_frozen_channels_are_not_penalised() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    ).train()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    method = make("network_slimming", penalty=1.0)
    method.attach(graph)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.after_backward()
    assert model[1].weight.grad.tolist() == [1.0] * 6
    assert not model[3].weight.grad.any()


def test_norms_that_share_channels_are_averaged(mixed: Graph) -> None:
    model = mixed.model
    with torch.no_grad():
        model.get_parameter("norm2.weight").neg_()
    expected = torch.stack(
        [model.get_parameter(f"norm{n}.weight").detach().abs() for n in (1, 2, 3)]
    ).mean(0)
    first = scores_of("network_slimming", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, expected)


def test_a_group_without_a_norm_is_not_judged() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
    )
    first, second = scores_of("network_slimming", trace(model, torch.randn(2, 3, 8, 8)))
    assert first is not None
    assert second is None


def test_a_norm_of_concatenated_maps_scores_each_of_them() -> None:
    model = randomize_norms(
        Net(
            lambda net, x: net.head(net.norm(torch.cat([net.a(x), net.b(x)], 1))),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 3, 1),
            norm=nn.BatchNorm2d(7),
            head=nn.Conv2d(7, 2, 1),
        )
    )
    first, second = scores_of("network_slimming", trace(model, torch.randn(2, 3, 8, 8)))
    gamma = model.get_parameter("norm.weight").detach()
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, gamma[:4])
    torch.testing.assert_close(second, gamma[4:])


def test_training_with_the_penalty_shrinks_the_scales() -> None:
    sizes = []
    for penalty in (0.0, 0.05):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        )
        method = make("network_slimming", penalty=penalty)
        method.attach(trace(model, torch.randn(2, 3, 8, 8)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for images in batches(64, 8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(8) % 4).backward()
            method.after_backward()
            optimizer.step()
        sizes.append(float(model[1].weight.detach().abs().mean()))
    assert sizes[1] < sizes[0] - 0.02


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        make("network_slimming", penalty=-1e-4)
