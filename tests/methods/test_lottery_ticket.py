from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scoring import make
from test_weights import network, train
from torch import Tensor, nn

from prune2deploy.errors import MethodError
from prune2deploy.methods.common.weights import MaskKeeper, Weights, prunable, reinitialise
from prune2deploy.methods.lottery_ticket import LotteryTicket


def ticket(**options: Any) -> LotteryTicket:
    method = make("lottery_ticket", **options)
    assert isinstance(method, LotteryTicket)
    return method


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_example_of_the_specification() -> None:
    """methods.md 3.31: 100 weights become 80, 64, 51, 40; what stays is W_k bit by bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Flatten())
    early = state(model)
    weights = Weights(model, prunable(model), 0.8**4)
    method = ticket(start="given")
    method.begin(weights)
    masks: dict[str, Tensor] = {}
    kept = []
    for number in range(1, 5):
        with torch.no_grad():  # as if it had been trained
            model.get_parameter("0.weight").add_(torch.randn(10, 10))
            if masks:
                MaskKeeper(model, masks).apply()
        before = masks
        masks = method.masks(replace(weights, share=0.8**number, held=before))
        kept.append(int(masks["0.weight"].sum()))
        if before:
            assert not (masks["0.weight"] & ~before["0.weight"]).any()
        assert method.restart(weights, last=number == 4) == 0
        MaskKeeper(model, masks).apply()
        found = model.get_parameter("0.weight").detach()
        mask = masks["0.weight"]
        assert torch.equal(found[mask], early["0.weight"][mask])
        assert (found[~mask] == 0).all()
    assert kept == [80, 64, 51, 40]


def test_what_goes_is_the_smallest_of_what_was_trained() -> None:
    model = network()
    weights = Weights(model, prunable(model), 0.5)
    method = ticket(start="given")
    method.begin(weights)
    train(model, method)
    masks = method.masks(weights)
    magnitudes = {name: model.get_parameter(name).detach().abs() for name in masks}
    kept = min(float(magnitudes[name][mask].min()) for name, mask in masks.items())
    gone = max(float(magnitudes[name][~mask].max()) for name, mask in masks.items())
    assert gone < kept


@pytest.mark.parametrize(("rewind", "number"), [(0.0, 0), (1 / 3, 3), (0.01, 1), (0.99, 8)])
def test_it_goes_back_to_the_step_asked_for(rewind: float, number: int) -> None:
    model = network()
    method = ticket(start="given", rewind=rewind)
    weights = Weights(model, prunable(model), 0.5)
    method.begin(weights)
    seen = [state(model)]

    class Watching:
        after_backward = staticmethod(method.after_backward)

        @staticmethod
        def after_step(where: Any) -> None:
            method.after_step(where)
            seen.append(state(model))

    train(model, Watching(), epochs=3)
    method.detach()
    assert not same(state(model), seen[number])
    assert method.restart(weights, last=False) == number
    # Norms and their statistics too.
    assert same(state(model), seen[number])


def test_a_later_training_does_not_change_what_it_goes_back_to() -> None:
    model = network()
    method = ticket(start="given")
    weights = Weights(model, prunable(model), 0.5)
    method.begin(weights)
    early = state(model)
    for _ in range(2):
        train(model, method)
        method.restart(weights, last=False)
        assert same(state(model), early)


def test_a_fresh_start_is_drawn_with_the_seed() -> None:
    model, expected = network(), network()
    ticket().begin(Weights(model, prunable(model), 0.5, seed=7))
    reinitialise(expected, 7)
    assert same(state(model), state(expected))
    assert not same(state(model), state(network()))
    assert ticket().notes()
    assert not ticket(start="given").notes()


def test_the_control_starts_its_last_training_from_other_random_weights() -> None:
    model = network()
    method = ticket(retrain="random", rewind=0.5)
    weights = Weights(model, prunable(model), 0.5)
    method.begin(weights)
    fresh = state(model)
    train(model, method)
    early = method.restart(weights, last=False)
    assert early == 4
    rewound = state(model)
    assert method.restart(weights, last=True) == 0
    assert not same(state(model), rewound)
    assert not torch.equal(model.state_dict()["0.weight"], fresh["0.weight"])
    assert any("control" in note for note in method.notes())


def test_without_training_there_is_nothing_to_go_back_to() -> None:
    model = network()
    with pytest.raises(MethodError, match=r"no early weights.*Add prune\.train"):
        ticket().restart(Weights(model, prunable(model), 0.5), last=True)
