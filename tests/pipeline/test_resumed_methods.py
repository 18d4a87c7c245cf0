"""Every method's training, stopped in the middle, goes on to the same weights and scores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import StopAt, Stopped
from test_methods_on_digits import TEXT, TRAIN, recipe_of
from torch import nn

from prune2deploy import progress
from prune2deploy.channels import trace
from prune2deploy.methods import METHODS, Context
from prune2deploy.methods.common.weights import WeightMethod, Weights, prunable
from prune2deploy.pipeline.inputs import Inputs, open_inputs, train_settings
from prune2deploy.planning.plan import make_method
from prune2deploy.recipe import Recipe, parse_recipe
from prune2deploy.train import fit
from prune2deploy.train.checkpoint import Checkpoint

NAMES = sorted(n for n, kind in METHODS.items() if kind.needs_training or kind.may_train)
STOP = 25  # of 44 steps, 22 to an epoch


def trainable(name: str, folder: Path) -> Recipe:
    """A recipe with a training for the method."""
    if METHODS[name].granularity == "channel":
        return recipe_of(name, folder)
    text = TEXT.format(method=name, channels="", train=TRAIN)
    return parse_recipe(text.replace("macs: 0.45", "weights: 0.5"), folder / "digits.yaml")


def trained(
    name: str, folder: Path, start: nn.Module, inputs: Inputs, checkpoint: Checkpoint | None
) -> tuple[dict[str, Any], Any]:
    """The network after a training for the method, and what the method then thinks of it."""
    recipe = trainable(name, folder)
    model = copy.deepcopy(start)
    method = make_method(name, recipe.prune.options)
    graph = trace(model, inputs.example)
    if isinstance(method, WeightMethod):
        weights = Weights(model, prunable(model, ()), 0.5, None, 0)
        method.begin(weights)
    else:
        method.attach(graph)
    assert recipe.prune.train is not None
    try:
        fit(
            model,
            inputs.task,
            inputs.data,
            train_settings(recipe.prune.train, recipe),
            hooks=method,
            seed=3,
            checkpoint=checkpoint,
        )
    finally:
        method.detach()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if isinstance(method, WeightMethod):
        return state, list(method.masks(weights).values())

    def batches(count: int, size: int) -> Any:
        return inputs.data.loader("train", batch_size=size, limit=count)

    def images(count: int, size: int) -> Any:
        return (batch for batch, _ in batches(count, size))

    def losses(network: nn.Module, count: int, size: int) -> Any:
        return (inputs.task.loss(network(x), y) for x, y in batches(count, size))

    return state, method.score(Context(graph, images, losses))


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_the_middle_of_an_epoch(name: str, tmp_path: Path) -> None:
    inputs = open_inputs(trainable(name, tmp_path))
    torch.manual_seed(1)
    whole, wanted = trained(name, tmp_path, inputs.model, inputs, None)
    kept = Checkpoint(tmp_path / "training", every_s=0)
    torch.manual_seed(1)
    with pytest.raises(Stopped), progress.use(StopAt(STOP)):
        trained(name, tmp_path, inputs.model, inputs, kept)
    found = kept.read()
    assert found is not None
    assert found["step"] == STOP - 1
    torch.manual_seed(99)  # a new process is not in the state of the old one
    again, scores = trained(name, tmp_path, inputs.model, inputs, kept)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    for one, other in zip(wanted, scores, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_is_over_is_not_done_again(name: str, tmp_path: Path) -> None:
    inputs = open_inputs(trainable(name, tmp_path))
    torch.manual_seed(1)
    kept = Checkpoint(tmp_path / "training")
    whole, wanted = trained(name, tmp_path, inputs.model, inputs, kept)
    with progress.use(StopAt(1)):  # not a single step
        again, scores = trained(name, tmp_path, inputs.model, inputs, kept)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    for one, other in zip(wanted, scores, strict=True):
        assert one is None or torch.equal(one, other)
