"""Polarization."""

from __future__ import annotations

import pytest
import torch
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods.polarization import regularizer


def test_the_example_of_the_specification() -> None:
    # methods.md 3.16: the mean is differentiated too; detached it would give [2.2, 2.2, 0.2].
    gamma = torch.tensor([0.1, 0.2, 0.9], requires_grad=True)
    value = regularizer(gamma, 1.2)
    value.backward()
    assert value.item() == pytest.approx(0.44)
    assert gamma.grad is not None
    expected = torch.tensor([1.8667, 1.8667, -0.1333])
    torch.testing.assert_close(gamma.grad, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("t", [-2.0, 0.0, 0.8, 1.4])
def test_it_is_least_with_a_share_of_half_plus_a_quarter_of_t_at_zero(t: float) -> None:
    values = [
        regularizer(torch.cat([torch.zeros(k), torch.ones(200 - k)]), t).item() for k in range(201)
    ]
    assert values.index(min(values)) == round(200 * (0.5 + t / 4))
    between = regularizer(torch.linspace(0, 1, 200), t).item()
    assert min(values) < between, "and not with scales between"


def test_the_mean_is_that_of_all_scales_that_can_go(mixed: Graph) -> None:
    method = make("polarization", penalty=2.0, t=1.4)
    method.attach(mixed)
    names = [f"norm{n}.weight" for n in range(1, 6)]
    together = torch.cat([mixed.model.get_parameter(n).detach() for n in names])
    by_hand = 2 * (1.4 * together.abs().sum() - (together - together.mean()).abs().sum())
    found = method.extra_loss()
    assert found is not None
    torch.testing.assert_close(found.detach(), by_hand)


def test_scales_stay_between_zero_and_one(mixed: Graph) -> None:
    method = make("polarization")
    method.attach(mixed)
    with torch.no_grad():
        mixed.model.get_parameter("norm1.weight")[:3] = torch.tensor([-0.5, 0.25, 1.5])
        mixed.model.get_parameter("norm1.bias")[0] = -3.0
    method.after_step(step())
    assert mixed.model.get_parameter("norm1.weight")[:3].tolist() == [0.0, 0.25, 1.0]
    assert mixed.model.get_parameter("norm1.bias")[0] == -3.0


def test_training_parts_the_scales_where_l1_would_shrink_them_all() -> None:
    def trained(name: str, **options: float) -> torch.Tensor:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)]
        model = nn.Sequential(*layers)
        nn.init.uniform_(model[1].weight, 0.3, 0.7)
        method = make(name, **options)
        method.attach(trace(model, torch.randn(2, 3, 8, 8)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for images in batches(320, 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images).mean((2, 3)), torch.arange(8) % 4)
            extra = method.extra_loss()
            (loss if extra is None else loss + extra).backward()
            method.after_backward()
            optimizer.step()
            method.after_step(step())
        return model[1].weight.detach().abs()

    parted = trained("polarization", penalty=0.2, t=1.0)
    shrunk = trained("network_slimming", penalty=0.2)
    assert (parted < 0.05).any()
    assert (parted > 0.7).any(), "above all that it began with"
    assert not (shrunk > 0.5).any()


def test_the_score_is_the_mean_scale_of_a_group(mixed: Graph) -> None:
    second = scores_of("polarization", mixed)[1]
    assert second is not None
    torch.testing.assert_close(second, mixed.model.get_parameter("norm4.weight").detach().abs())
