from __future__ import annotations

from typing import Any

import pytest
import torch
from scoring import make, step
from test_weights import network, train
from torch import Tensor, nn

from prune2deploy.errors import MethodError
from prune2deploy.methods.common.weights import Weights, prunable
from prune2deploy.methods.sparse_momentum import SparseMomentum, annealed, growth, shares


def begun(share: float = 0.3, **options: Any) -> tuple[SparseMomentum, nn.Module, Weights]:
    method = make("sparse_momentum", **options)
    assert isinstance(method, SparseMomentum)
    model = network()
    weights = Weights(model, prunable(model), share, seed=1)
    method.begin(weights)
    return method, model, weights


def nonzeros(masks: dict[str, Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


def test_the_example_of_the_specification() -> None:
    """methods.md 3.30: parts of what grows follow mean momenta; the total stays."""
    assert shares([0.3, 0.1]) == pytest.approx([0.75, 0.25])
    assert growth([0.75, 0.25], 100, [1000, 1000]) == [75, 25]
    method, _, weights = begun()
    before = sum(nonzeros(method.masks(weights)))
    train(weights.model, method, epochs=4)
    assert sum(nonzeros(method.masks(weights))) == before


def test_without_any_momentum_layers_grow_alike() -> None:
    assert shares([0.0, 0.0]) == [0.5, 0.5]


def test_what_has_no_place_is_spread_evenly() -> None:
    assert growth([1.0, 0.0, 0.0], 200, [100, 1000, 1000]) == [99, 51, 50]
    assert growth([0.5, 0.5], 5, [100, 100]) == [3, 2]
    # At 0.99 there is no place for all, so the last hundredth is used as well.
    assert growth([0.5, 0.5], 20, [10, 10]) == [10, 10]
    assert growth([0.5, 0.5], 0, [3, 3]) == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_of_what_grows_is_what_was_pruned(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.rand(5, generator=generator).pow(4)
    free = torch.randint(0, 300, (5,), generator=generator).tolist()
    removed = int(torch.randint(0, sum(free) + 1, (1,), generator=generator))
    grown = growth((parts / parts.sum()).tolist(), removed, free)
    assert sum(grown) == removed
    assert all(0 <= g <= f for g, f in zip(grown, free, strict=True))


def test_the_rate_follows_a_cosine() -> None:
    assert annealed(0.5, 0.005, 0.0) == pytest.approx(0.5)
    assert annealed(0.5, 0.005, 0.5) == pytest.approx(0.2525)
    assert annealed(0.5, 0.005, 1.0) == pytest.approx(0.005)


def test_the_first_mask_is_random_and_equally_dense() -> None:
    method, model, weights = begun(share=0.5)
    masks = method.masks(weights)
    assert nonzeros(masks) == [108, 144, 16]
    for name, mask in masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
    magnitude = model.get_parameter("3.weight").detach().abs()
    assert not torch.equal(masks["3.weight"], magnitude >= magnitude.median())


def test_it_starts_from_fresh_or_from_given_weights() -> None:
    given = network().get_parameter("0.weight")
    for start, same in (("given", True), ("fresh", False)):
        method, model, weights = begun(start=start)
        mask = method.masks(weights)["0.weight"]
        found = model.get_parameter("0.weight")
        assert torch.equal(found[mask], given[mask]) == same
        assert bool(method.notes()) != same


def test_one_move_prunes_by_magnitude_and_grows_by_momentum() -> None:
    method = make("sparse_momentum", start="given", smoothing=0.0)
    assert isinstance(method, SparseMomentum)
    model = nn.Sequential(nn.Linear(10, 1, bias=False), nn.Linear(10, 1, bias=False))
    weights = Weights(model, prunable(model), 0.4)
    method.begin(weights)
    one, two = (model.get_parameter(name) for name in weights.names)
    old = {name: mask.clone() for name, mask in method.masks(weights).items()}
    with torch.no_grad():
        for weight, name in ((one, "0.weight"), (two, "1.weight")):
            # The magnitudes of what stands are 1, 2, 3, 4.
            weight[old[name]] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    # Mean |gradient| where weights stand: 3 and 1; where none do it rises with the place.
    ramp = torch.arange(1.0, 7.0)
    for weight, name, mean in ((one, "0.weight", 3.0), (two, "1.weight", 1.0)):
        weight.grad = torch.full((1, 10), mean)
        weight.grad[~old[name]] = ramp / 10
    method.after_backward()
    method.move(0.5)
    new = method.masks(weights)
    # 2 + 2 are pruned; 3 of the 4 grow in the first layer, 1 in the second. What was pruned has
    # the larger momentum here (3 and 1), so it comes back, and then the end of the ramp.
    assert nonzeros(new) == [5, 3]
    assert new["0.weight"][old["0.weight"]].all()
    assert new["0.weight"][~old["0.weight"]].tolist() == [False] * 5 + [True]
    assert one[old["0.weight"]].tolist() == [0.0, 0.0, 3.0, -4.0], "they start again at zero"
    kept = new["1.weight"][old["1.weight"]]
    assert kept.tolist()[2:] == [True, True]
    assert kept.sum() == 3


def test_zeros_are_held_and_gradients_of_zeros_seen() -> None:
    method, model, weights = begun(rate=0.5)
    train(model, method, epochs=3)
    for name, mask in method.masks(weights).items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert weight.grad is not None
        assert weight.grad[~mask].any(), "gradients are not masked"


def test_masks_move_at_epoch_ends_except_the_last() -> None:
    method, model, weights = begun()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    method.after_backward()
    first = {name: mask.clone() for name, mask in method.masks(weights).items()}

    def moved() -> bool:
        now = method.masks(weights)
        return any(not torch.equal(now[name], mask) for name, mask in first.items())

    method.after_step(step(number=1, total=3))
    method.after_step(step(number=3, total=3, ends_epoch=True))
    assert not moved()
    method.after_step(step(number=2, total=3, ends_epoch=True))
    assert moved()


def test_a_dense_layer_with_a_large_part_gives_little() -> None:
    method = make("sparse_momentum", start="given", smoothing=0.0)
    assert isinstance(method, SparseMomentum)
    model = nn.Sequential(nn.Linear(100, 1, bias=False), nn.Linear(100, 1, bias=False))
    weights = Weights(model, prunable(model), 0.9)
    method.begin(weights)
    with torch.no_grad():
        for n, name in enumerate(weights.names):
            parameter = model.get_parameter(name)
            parameter.grad = torch.full_like(parameter, 0.0 if n else 1.0)
    method.after_backward()
    method.move(0.5)
    # The first gives min(0.1, 0.5) of 90, the second half of 90; the first has room for 19 and
    # fills 18 of it, the second gets the other 36.
    assert nonzeros(method.masks(weights)) == [81 + 18, 45 + 36]


def test_without_training_there_are_no_masks() -> None:
    method = make("sparse_momentum")
    assert isinstance(method, SparseMomentum)
    model = network()
    with pytest.raises(MethodError, match="was not trained with its hooks"):
        method.masks(Weights(model, prunable(model), 0.5))
