"""Single weights: which take part, which stay, and zeros that stay zero while it trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scoring import batches, make, step
from torch import Tensor, nn

from prune2deploy.channels import trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import METHODS, Context
from prune2deploy.methods.base import Step
from prune2deploy.methods.common.weights import (
    MaskKeeper,
    WeightMethod,
    Weights,
    count_kept,
    largest,
    prunable,
    reinitialise,
    takes_pattern,
    two_of_four,
)

NAMES = sorted(name for name, kind in METHODS.items() if kind.granularity == "weight")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def method_named(name: str, **options: Any) -> WeightMethod[Any]:
    method = make(name, **options)
    assert isinstance(method, WeightMethod)
    return method


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 4)


def train(model: nn.Module, hooks: Any, epochs: int = 3, weight_decay: float = 0.05) -> None:
    """SGD with all that could move a weight that should stay zero."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    model.train()
    images = batches(12, 4)
    for number in range(epochs * 3):
        optimizer.zero_grad()
        loss_of(model, images[number % 3]).backward()
        hooks.after_backward()
        optimizer.step()
        hooks.after_step(Step(0.1, number + 1, epochs * 3, ends_epoch=number % 3 == 2))


def trained(name: str, model: nn.Module, share: float, seed: int = 0) -> dict[str, Tensor]:
    """The masks of a method after its training."""
    weights = Weights(model, prunable(model), share, seed=seed)
    method = method_named(name)
    if METHODS[name].needs_training:
        method.begin(weights)
        train(model, method)
        method.detach()
    return method.masks(weights)


@pytest.mark.parametrize("share", [0.9, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_masks_keep_the_share_of_the_weights(name: str, share: float) -> None:
    model = network()
    masks = trained(name, model, share)
    assert list(masks) == ["0.weight", "3.weight", "6.weight"]
    for key, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == model.get_parameter(key).shape
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    # Layer by layer up to one weight less for each.
    assert math.floor(share * total + 1e-9) - len(masks) < kept <= math.floor(share * total + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_and_seed_give_the_same_masks(name: str) -> None:
    first, second = trained(name, network(), 0.3), trained(name, network(), 0.3)
    for key, mask in first.items():
        assert torch.equal(second[key], mask)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_exactly_zero_under_momentum_and_weight_decay(name: str) -> None:
    model = network()
    # Momentum from a training without masks, as a running optimizer would have.
    masks = trained(name, model, 0.3)
    keeper = MaskKeeper(model, masks)
    keeper.apply()
    before = {key: model.get_parameter(key).detach().clone() for key in masks}
    train(model, keeper)
    for key, mask in masks.items():
        weight = model.get_parameter(key).detach()
        assert (weight[~mask] == 0).all()
        assert not (weight[mask] == before[key][mask]).any(), "the others learn"


@pytest.mark.parametrize("name", NAMES)
def test_channels_have_no_scores(name: str) -> None:
    graph = trace(network(), torch.randn(1, 3, 8, 8))
    with pytest.raises(MethodError, match=f"{name} keeps single weights.*weight_masks"):
        make(name).score(Context(graph))


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_there_if_and_only_if_training_is_needed(name: str) -> None:
    kind = METHODS[name]
    hooks = ("after_backward", "after_step")
    learns = any(getattr(kind, hook) is not getattr(WeightMethod, hook) for hook in hooks)
    assert learns == kind.needs_training


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("3.weight")[1, 0, 0, 0] = float("nan")
    weights = Weights(model, prunable(model), 0.5)
    with pytest.raises(MethodError, match=r"'3\.weight' hold NaN or inf\. Check the checkpoint"):
        method_named("han").masks(weights)


def test_momentum_from_before_the_masks_moves_nothing() -> None:
    weight = nn.Parameter(torch.tensor([[0.1, -0.5, 0.3, -0.05]]))
    model = nn.Linear(4, 1, bias=False)
    model.weight = weight
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    keeper = MaskKeeper(model, {"weight": torch.tensor([[False, True, True, False]])})
    keeper.apply()
    optimizer.zero_grad()
    model(torch.ones(1, 4)).sum().backward()
    keeper.after_backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    optimizer.step()
    assert weight[0, 0] != 0, "the old momentum did move it"
    keeper.after_step(step())
    assert weight[0, 0] == 0
    assert weight[0, 3] == 0


def test_dense_gradients_are_left_alone_and_weights_are_not() -> None:
    model = nn.Linear(2, 1, bias=False)
    keeper = MaskKeeper(model, {"weight": torch.tensor([[True, False]])}, dense_gradients=True)
    model(torch.ones(1, 2)).sum().backward()
    keeper.after_backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[1.0, 1.0]]
    keeper.after_step(step())
    assert model.weight[0, 1] == 0
    assert model.weight[0, 0] != 0


def test_a_weight_that_is_not_finite_becomes_zero_too() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
        model.weight[0, 1] = -1.0
    MaskKeeper(model, {"weight": torch.tensor([[False, False]])}).apply()
    assert not model.weight.any()
    assert not model.weight.signbit().any()


def test_convolutions_and_linear_layers_take_part_and_nothing_else() -> None:
    model = nn.Module()
    model.conv = nn.Conv2d(4, 4, 3)
    model.up = nn.ConvTranspose2d(4, 4, 2)
    model.norm = nn.BatchNorm2d(4)
    model.table = nn.Embedding(5, 4)
    model.token = nn.Parameter(torch.zeros(1, 1, 4))
    model.attention = nn.MultiheadAttention(4, 2)
    model.frozen = nn.Linear(4, 4).requires_grad_(False)
    model.shared = nn.Linear(4, 4)
    model.again = nn.Linear(4, 4)
    model.again.weight = model.shared.weight
    assert prunable(model) == (
        "conv.weight",
        "up.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "shared.weight",
    )
    kept = prunable(model, ("attention", "up.*", "shared.weight"))
    assert kept == ("conv.weight",)
    with pytest.raises(MethodError, match=r"no weights that can be zeroed.*prune\.exclude"):
        prunable(model, ("conv", "attention", "up", "shared"))


def test_the_largest_are_exactly_as_many_as_asked_for() -> None:
    assert largest(torch.tensor([3.0, 1.0, 2.0]), 2).tolist() == [True, False, True]
    # Of equal ones the first goes first, as everywhere.
    assert largest(torch.tensor([1.0, 1.0, 2.0, 1.0]), 2).tolist() == [False, False, True, True]
    assert largest(torch.tensor([-math.inf, 1.0]), 1).tolist() == [False, True]
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0)).mul(20).floor()
    order = sorted(range(1000), key=lambda n: (float(scores[n]), n))
    for keep in (1, 37, 500, 999, 1000):
        expected = set(order[1000 - keep :])
        assert set(largest(scores, keep).nonzero().flatten().tolist()) == expected


def test_a_share_is_rounded_down_and_keeps_one_at_least() -> None:
    assert [count_kept(0.8**n, 100) for n in range(1, 5)] == [80, 64, 51, 40]
    assert count_kept(0.29, 100) == 29  # 28.999999999999996
    assert count_kept(0.001, 10) == 1


def test_two_of_four_stay_along_the_input_channels() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert two_of_four(scores).tolist() == [[True, True, False, False, False, False, True, True]]
    # [K, C, R, S]: for each output and each position of the kernel, slowly.
    weight = torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(0)).abs()
    mask = two_of_four(weight)
    assert mask.shape == weight.shape
    assert mask.is_contiguous()
    for k in range(3):
        for r in range(2):
            for s in range(5):
                for c in (0, 4):
                    four = weight[k, c : c + 4, r, s].tolist()
                    best = sorted(range(4), key=lambda n: four[n])[2:]
                    kept = mask[k, c : c + 4, r, s].nonzero().flatten().tolist()
                    assert kept == sorted(best)


def test_the_pattern_fits_where_input_channels_are_a_multiple_of_four() -> None:
    model = nn.Module()
    model.first = nn.Conv2d(3, 8, 3)
    model.deep = nn.Conv2d(8, 8, 3)
    model.depth = nn.Conv2d(8, 8, 3, groups=8)
    model.up = nn.ConvTranspose2d(8, 8, 2)
    model.head = nn.Linear(6, 4)
    model.attention = nn.MultiheadAttention(8, 2)
    fits = [name for name in prunable(model) if takes_pattern(model, name)]
    assert fits == ["deep.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    weights = Weights(model, prunable(model), 0.5, "2:4")
    masks = method_named("han").masks(weights)
    for name, mask in masks.items():
        if name in fits:
            fours = mask.movedim(1, -1).reshape(-1, 4)
            assert (fours.sum(1) == 2).all(), name
        else:
            assert mask.all(), name


def test_a_fresh_start_is_that_of_the_layers_and_repeats() -> None:
    one, two, other = network(), network(), network()
    with torch.no_grad():
        one.get_buffer("1.running_mean").fill_(3.0)
    state = torch.random.get_rng_state()
    reinitialise(one, 5)
    reinitialise(two, 5)
    reinitialise(other, 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.get_parameter("0.weight"), two.get_parameter("0.weight"))
    assert not torch.equal(one.get_parameter("0.weight"), other.get_parameter("0.weight"))
    assert not one.get_buffer("1.running_mean").any()
    torch.manual_seed(5)
    expected = nn.Conv2d(3, 8, 3)  # the first that draws
    assert torch.equal(one.get_parameter("0.weight"), expected.weight)


def test_what_cannot_start_anew_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            self.layer = nn.Linear(4, 4)

    model = nn.Sequential(Own())
    before = model.state_dict()["0.layer.weight"].clone()
    with pytest.raises(MethodError, match=r"reset_parameters.*0 has none\. Write 'start: given'"):
        reinitialise(model, 0)
    assert torch.equal(model.state_dict()["0.layer.weight"], before)
