from __future__ import annotations

import pytest
import torch
from scoring import make, step
from torch import Tensor, nn

from prune2deploy.methods.common.weights import MaskKeeper, Weights, prunable
from prune2deploy.methods.han import Han, in_deviations


def two_layers() -> nn.Module:
    """The second layer's weights are a hundredth of the first's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(model.get_parameter("0.weight").flip(0) / 100)
    return model


def masks(model: nn.Module, share: float, held: dict[str, Tensor] | None = None, how: str = "std"):
    method = make("han", threshold=how)
    assert isinstance(method, Han)
    return method.masks(Weights(model, prunable(model), share, held=held or {}))


@pytest.mark.parametrize("how", ["std", "global", "layer"])
def test_the_example_of_the_specification(how: str) -> None:
    """methods.md 3.6: half of four weights go, and a step of SGD leaves them at zero."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -0.5, 0.3, -0.05]]))
    found = masks(model, 0.5, how=how)
    assert found["weight"].tolist() == [[False, True, True, False]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    keeper = MaskKeeper(model, found)
    keeper.apply()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        keeper.after_backward()
        optimizer.step()
        keeper.after_step(step())
    assert model.weight[0, [0, 3]].tolist() == [0.0, 0.0]
    assert (model.weight[0, [1, 2]] != torch.tensor([-0.5, 0.3])).all()


def test_layers_are_compared_as_asked() -> None:
    model = two_layers()
    everywhere = masks(model, 0.3, how="global")
    assert not everywhere["1.weight"].any()
    assert everywhere["0.weight"].sum() == 60
    by_layer = masks(model, 0.3, how="layer")
    assert [int(mask.sum()) for mask in by_layer.values()] == [30, 30]
    # In deviations the layers are one like the other, so ties are all that tells them apart.
    by_deviation = masks(model, 0.3)
    assert [int(mask.sum()) for mask in by_deviation.values()] == [30, 30]


def test_one_multiple_of_the_deviation_is_the_threshold_of_all_layers() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(3, 8, 3), nn.Linear(6, 2))
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(7).pow_(3)
    found = masks(model, 0.25)
    inside, outside = [], []
    for name, mask in found.items():
        weight = model.get_parameter(name).detach().double()
        mean = weight.mean()
        deviation = ((weight - mean) ** 2).mean().sqrt()
        inside.append((weight[mask].abs() / deviation).min())
        outside.append((weight[~mask].abs() / deviation).max())
    assert max(outside) < min(inside)


def test_equal_weights_have_no_order_and_no_nan() -> None:
    assert in_deviations(torch.full((5,), -2.0)).tolist() == [1.0] * 5
    assert in_deviations(torch.zeros(3)).tolist() == [0.0] * 3
    assert in_deviations(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("how", ["std", "global", "layer"])
def test_what_is_gone_stays_gone_in_the_next_round(how: str) -> None:
    model = two_layers()
    first = masks(model, 0.5, how=how)
    # Zeroed weights that came back, larger than all: only the mask tells that they are gone.
    with torch.no_grad():
        for name, mask in first.items():
            model.get_parameter(name).masked_fill_(~mask, 9.0)
    second = masks(model, 0.25, first, how=how)
    for name, mask in second.items():
        assert not (mask & ~first[name]).any()
    assert sum(int(mask.sum()) for mask in second.values()) == 50
