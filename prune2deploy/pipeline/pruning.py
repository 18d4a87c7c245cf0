"""The prune stage: training with the method's hooks, scores, cuts, and rounds of them."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prune2deploy.channels import Graph, Plan, cut, trace, try_plan
from prune2deploy.channels.compensation import compensate
from prune2deploy.data import Loader
from prune2deploy.devices import load_devices
from prune2deploy.errors import ModelError
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import Context, Method
from prune2deploy.methods.common.weights import Masks
from prune2deploy.pipeline.inputs import Inputs, train_settings
from prune2deploy.pipeline.processes import is_follower
from prune2deploy.pipeline.timed_round import timed_plan
from prune2deploy.planning.plan import (
    Share,
    edits_weights,
    make_method,
    plan,
    prepare,
)
from prune2deploy.planning.rounding import rounding_for
from prune2deploy.recipe import Recipe
from prune2deploy.train import Checkpoint, evaluate, fit, recalibrate_batchnorm

log = logging.getLogger(__name__)

_COMPENSATION = 1024
"""Training images on which it is measured what removed channels give."""

_JUDGED = 1024
"""Training images on which methods try networks out where there are no validation images."""


@dataclass(frozen=True)
class Checkpoints:
    """Where the trainings of one stage stand.

    folder: None: nowhere. identity: see Checkpoint.
    """

    folder: Path | None = None
    identity: str = ""
    every_s: float = 60.0

    def named(self, name: str) -> Checkpoint | None:
        """The file of one training."""
        if self.folder is None:
            return None
        return Checkpoint(self.folder / f"{name}.state", self.identity, self.every_s)


NOWHERE = Checkpoints()


@dataclass(frozen=True)
class Pruned:
    """The pruned model, and what is known of it.

    plan: the cut from the original to it. graph: of the original, where channels were cut.
    masks: which weights stay, where single weights were zeroed.
    """

    model: nn.Module
    plan: Plan
    graph: Graph | None = None
    masks: Masks | None = None


def prune(
    recipe: Recipe, inputs: Inputs, model: nn.Module, checkpoints: Checkpoints = NOWHERE
) -> Pruned:
    """Prune a trained model as the recipe says. `model` is left alone.

    checkpoints: trainings go on from there.

    Raises:
        BudgetError: the budget cannot be reached.
        ModelError: a cut does not run or does not give the zeroed model's numbers.
    """
    section = recipe.prune
    method = make_method(section.method, section.options)
    teacher = model
    start = trace(model, inputs.example, section.exclude)
    if section.train is not None:
        model = copy.deepcopy(model)
        graph = trace(model, inputs.example, section.exclude)
        train_with_hooks(recipe, inputs, model, teacher, method, graph, checkpoints)
    total: Plan | None = None
    rounds = section.schedule.rounds
    for number in range(1, rounds + 1):
        graph = start if model is teacher else trace(model, inputs.example, section.exclude)
        log.info("Round %d of %d: %d groups", number, rounds, len(graph.groups))
        stands = checkpoints.named(f"round {number} plan") if number < rounds else None
        make = functools.partial(_step, recipe, inputs, method, graph, start, number)
        step = _planned(stands, make)
        if edits_weights(method):
            images = functools.partial(training_images, recipe, inputs)
            graph = replace(graph, model=prepare(graph, step, method, images=images))
        if section.compensate:
            graph = compensated(recipe, inputs, graph, step)
        model = checked_cut(graph, step)
        total = step if total is None else total.then(step)
        if section.recalibrate:
            recalibrate(recipe, inputs, model)
        if number < rounds and section.schedule.finetune_epochs > 0:
            _train_between(
                recipe, inputs, model, teacher, method, checkpoints.named(f"round {number}")
            )
    assert total is not None
    return Pruned(model, total, start)


def _planned(stands: Checkpoint | None, make: Callable[[], Plan]) -> Plan:
    """The plan of a round, from disk if it is there: a training may stand that fits no other.

    Times are never measured twice alike, and scores of a GPU are not either.
    """
    if stands is None:
        return make()
    kept = stands.read()
    if kept is not None:
        return Plan.from_json(kept["plan"])
    step = make()
    if not is_follower():
        stands.write({"plan": step.to_json()})
    return step


def _step(
    recipe: Recipe, inputs: Inputs, method: Method[Any], graph: Graph, start: Graph, number: int
) -> Plan:
    if recipe.prune.budget.timed:
        context = context_of(recipe, inputs, graph)
        return timed_plan(recipe, inputs, context, method, start, number)
    return _sized(recipe, inputs, method, graph, start, number)


def _sized(
    recipe: Recipe, inputs: Inputs, method: Method[Any], graph: Graph, start: Graph, number: int
) -> Plan:
    """The plan of one round for a budget that is known without measuring."""
    section = recipe.prune
    rounds = section.schedule.rounds
    round_to, whence = round_to_of(recipe)
    found = plan(
        graph,
        method,
        budget=_round_budget(section.budget.target(), number, rounds),
        round_to=round_to,
        min_channels=section.min_channels,
        normalize=section.normalize,
        images=lambda count, size: training_images(recipe, inputs, count, size),
        losses=lambda model, count, size: _losses(recipe, inputs, model, count, size),
        judge=lambda model: _judged(recipe, inputs, model),
        original=start,
    )
    return found if found.blocks else replace(found, notes=(*found.notes, *whence))


def round_to_of(recipe: Recipe) -> tuple[int, list[str]]:
    """What a budget that is no time rounds widths to, and a note where that was not said."""
    section = recipe.prune
    if section.round_to != "auto":
        return section.round_to, []
    options = ProfileOptions(threads=recipe.profile.threads)
    step, whence = rounding_for(recipe.profile.on, load_devices(), options)
    log.info("%s", whence)
    return step, [whence]


def context_of(recipe: Recipe, inputs: Inputs, graph: Graph) -> Context:
    """What the scores of a graph may look at."""
    return Context(
        graph,
        lambda count, size: training_images(recipe, inputs, count, size),
        lambda model, count, size: _losses(recipe, inputs, model, count, size),
        lambda model: _judged(recipe, inputs, model),
    )


def compensated(recipe: Recipe, inputs: Inputs, graph: Graph, step: Plan) -> Graph:
    """The graph of a copy of the model whose biases make up for what the cut takes away."""
    ready = replace(graph, model=copy.deepcopy(graph.model))
    images = training_images(recipe, inputs, _COMPENSATION, recipe.data.batch_size)
    without = compensate(ready, ready.kept(step), images)
    if without:
        log.info("Neither bias nor batch norm to compensate with: %s", ", ".join(without))
    return ready


def _judged(recipe: Recipe, inputs: Inputs, model: nn.Module) -> float:
    """The task's metric, higher is better: on validation images, or else on training images."""
    size = recipe.data.batch_size
    if inputs.data.size("val"):
        loader = inputs.data.loader("val", batch_size=size)
    else:
        loader = inputs.data.loader(
            "train", batch_size=size, shuffle=True, seed=recipe.seed + 2, limit=_JUDGED
        )
    value = evaluate(model, inputs.task, loader, label="Trying")[inputs.task.metric]
    return value if inputs.task.higher_is_better else -value


def checked_cut(graph: Graph, step: Plan) -> nn.Module:
    trial = try_plan(graph.model, step, graph.inputs)
    if not trial.held:
        raise ModelError(
            "The cut model does not behave like the original with the same channels zeroed "
            f"({trial.error or f'relative difference {trial.difference:.1e}'}), although half of "
            "every group could be cut. Exclude the layers at fault (prune.exclude)."
        )
    log.info("Cut agrees with the zeroed original to %.1e relative", trial.difference)
    return cut(graph.model, step)


def _round_budget(budget: Mapping[str, Share], number: int, rounds: int) -> Mapping[str, Share]:
    """The shares of the original to keep after this round: each round removes the same share."""
    part = number / rounds
    unit, share = next(iter(budget.items()))
    if isinstance(share, Mapping):
        return {unit: {pattern: value**part for pattern, value in share.items()}}
    return {unit: share**part}


def training_images(recipe: Recipe, inputs: Inputs, count: int, size: int) -> Iterable[Tensor]:
    """Training images without augmentation, in an order drawn with the seed."""
    return (images for images, _ in _samples(recipe, inputs, count, size))


def _losses(
    recipe: Recipe, inputs: Inputs, model: nn.Module, count: int, size: int
) -> Iterable[Tensor]:
    """The task's loss of the same images, batch by batch."""
    for images, targets in _samples(recipe, inputs, count, size):
        yield inputs.task.loss(model(images), targets)


def _samples(recipe: Recipe, inputs: Inputs, count: int, size: int) -> Loader:
    return inputs.data.loader("train", batch_size=size, shuffle=True, seed=recipe.seed, limit=count)


def recalibrate(recipe: Recipe, inputs: Inputs, model: nn.Module) -> None:
    """Renew the batch-norm statistics with training images."""
    size = recipe.data.batch_size
    batches = recipe.prune.recalibrate
    loader = inputs.data.loader(
        "train",
        batch_size=size,
        shuffle=True,
        seed=recipe.seed + 1,
        limit=size * batches,
        drop_last=inputs.data.size("train") >= size,
    )
    recalibrate_batchnorm(model, islice(iter(loader), batches), min(batches, len(loader)))


def train_with_hooks(
    recipe: Recipe,
    inputs: Inputs,
    model: nn.Module,
    teacher: nn.Module,
    method: Method[Any],
    graph: Graph,
    checkpoints: Checkpoints,
) -> None:
    assert recipe.prune.train is not None
    method.attach(graph)
    settings = train_settings(recipe.prune.train, recipe)
    try:
        fit(
            model,
            inputs.task,
            inputs.data,
            settings,
            hooks=method,
            teacher=teacher if settings.distill else None,
            seed=recipe.seed,
            label=f"Training for {method.name}",
            checkpoint=checkpoints.named("prune train"),
        )
    finally:
        method.detach()


def _train_between(
    recipe: Recipe,
    inputs: Inputs,
    model: nn.Module,
    teacher: nn.Module,
    method: Method[Any],
    checkpoint: Checkpoint | None,
) -> None:
    """Train between two rounds; a method that was trained with its hooks goes on with them."""
    assert recipe.finetune is not None
    epochs = recipe.prune.schedule.finetune_epochs
    settings = train_settings(recipe.finetune, recipe, epochs)
    hooked = recipe.prune.train is not None
    if hooked:
        method.attach(trace(model, inputs.example, recipe.prune.exclude))
    try:
        fit(
            model,
            inputs.task,
            inputs.data,
            settings,
            hooks=method if hooked else None,
            teacher=teacher if settings.distill else None,
            seed=recipe.seed,
            label="Training between rounds",
            checkpoint=checkpoint,
        )
    finally:
        if hooked:
            method.detach()
