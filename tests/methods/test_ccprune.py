"""CCPrune."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Net, randomize_norms
from scoring import batches, make, scores_of
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.ccprune import score

# Filters with L1 norms 4, 1 and 2 over two entries each.
WEIGHT = torch.tensor([[4.0, 0.0], [-0.5, 0.5], [1.0, -1.0]])
GAMMA = torch.tensor([0.1, -0.5, 0.15])


@pytest.mark.parametrize(
    ("combine", "layer_norm", "expected"),
    [
        ("product", False, [0.2, 0.25, 0.15]),  # means, so half of 0.4, 0.5, 0.3
        ("product", True, [0.8, 1.0, 0.6]),
        ("sum", False, [1.0 + 0.2, 0.25 + 1.0, 0.5 + 0.3]),
        ("sum", True, [1.2 / 1.25, 1.0, 0.8 / 1.25]),
    ],
)
def test_filter_and_scale_decide_together(
    combine: Any, layer_norm: bool, expected: list[float]
) -> None:
    found = score(WEIGHT, GAMMA, combine, layer_norm)
    torch.testing.assert_close(found, torch.tensor(expected))
    # methods.md 3.1: channel 2 goes; L1 alone would take 1, |gamma| alone 0, signed gamma 1.
    assert int(found.argmin()) == 2


def test_a_layer_of_zeros_scores_zero() -> None:
    for combine in ("product", "sum"):
        assert score(torch.zeros(3, 2), torch.zeros(3), combine, True).tolist() == [0, 0, 0]  # type: ignore[arg-type]


def test_the_penalty_and_its_gradient(mixed: Graph) -> None:
    model = mixed.model.train()
    method = make("ccprune", weight_penalty=0.5, gamma_penalty=2.0)
    assert method.extra_loss() is None, "nothing is attached yet"
    method.attach(mixed)
    extra = method.extra_loss()
    assert extra is not None
    convolutions = [model.get_parameter(f"{n}.weight") for n in ("stem", "inner", "depth", "side")]
    gammas = [model.get_parameter(f"norm{n}.weight") for n in range(1, 6)]
    expected = 0.5 * sum(w.abs().sum() for w in convolutions) + 2 * sum(
        g.abs().sum() for g in gammas
    )
    torch.testing.assert_close(extra, expected)

    extra.backward()
    for name, parameter in model.named_parameters():
        if any(parameter is w for w in convolutions):
            wanted = 0.5 * torch.sign(parameter.detach())
        elif any(parameter is g for g in gammas):
            wanted = 2 * torch.sign(parameter.detach())
        else:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted)


def test_the_penalty_follows_the_weights(mixed: Graph) -> None:
    method = make("ccprune")
    method.attach(mixed)
    before = method.extra_loss()
    with torch.no_grad():
        for parameter in mixed.model.parameters():
            parameter.mul_(0.5)
    after = method.extra_loss()
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after, before / 2)


def test_layers_of_a_group_are_paired_with_their_own_norms(mixed: Graph) -> None:
    model = mixed.model

    def part(layer: str, norm: str) -> torch.Tensor:
        weight = model.get_parameter(f"{layer}.weight").detach()
        return (
            weight.abs().flatten(1).mean(1) * model.get_parameter(f"{norm}.weight").detach().abs()
        )

    first = scores_of("ccprune", mixed, layer_norm=False)[0]
    assert first is not None
    expected = part("stem", "norm1") + part("inner", "norm2") + part("depth", "norm3")
    torch.testing.assert_close(first, expected)


def test_scales_of_one_channel_do_not_cancel() -> None:
    # A channel shuffle makes pairs of rows one channel; their scales have opposite signs.
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.norm(net.stem(x))
        n, c, h, w = x.shape
        return net.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    model = Net(forward, stem=nn.Conv2d(3, 6, 1), norm=nn.BatchNorm2d(6), head=nn.Conv2d(6, 2, 1))
    nn.init.ones_(model.stem.weight)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.5, 0.1, 0.2, -0.5, -0.1, 0.2]))
    (found,) = scores_of("ccprune", trace(model, torch.randn(2, 3, 8, 8)), layer_norm=False)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([0.5, 0.1, 0.2]))


def test_a_norm_behind_two_layers_counts_for_both() -> None:
    model = randomize_norms(
        Net(
            lambda net, x: net.head(net.norm(net.a(x) + net.b(x))),
            a=nn.Conv2d(3, 5, 1),
            b=nn.Conv2d(3, 5, 1),
            norm=nn.BatchNorm2d(5),
            head=nn.Conv2d(5, 2, 1),
        )
    )
    (found,) = scores_of("ccprune", trace(model, torch.randn(2, 3, 8, 8)), layer_norm=False)
    gamma = model.get_parameter("norm.weight").detach().abs()
    size = sum(
        model.get_parameter(f"{n}.weight").detach().abs().flatten(1).mean(1) for n in ("a", "b")
    )
    assert found is not None
    torch.testing.assert_close(found, size * gamma)


def test_training_with_the_penalties_shrinks_both() -> None:
    sizes = []
    for factor in (0.0, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        )
        method = make("ccprune", weight_penalty=0.02 * factor, gamma_penalty=0.05 * factor)
        method.attach(trace(model, torch.randn(2, 3, 8, 8)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for images in batches(64, 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 4)
            extra = method.extra_loss()
            assert extra is not None
            (loss + extra).backward()
            optimizer.step()
        sizes.append([float(model[n].weight.detach().abs().mean()) for n in (0, 1)])
    assert sizes[1][0] < sizes[0][0]
    assert sizes[1][1] < sizes[0][1] - 0.02
