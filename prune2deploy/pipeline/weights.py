"""The prune stage for methods that zero single weights, and their masks from Python."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prune2deploy.channels import Plan
from prune2deploy.channels.verify import check_exclude
from prune2deploy.errors import BudgetError, MethodError
from prune2deploy.methods.common.weights import (
    MaskKeeper,
    Masks,
    WeightMethod,
    Weights,
    prunable,
    takes_pattern,
)
from prune2deploy.pipeline.inputs import Inputs, train_settings
from prune2deploy.pipeline.pruning import NOWHERE, Checkpoints, Pruned, recalibrate
from prune2deploy.planning.plan import make_method
from prune2deploy.recipe import Recipe, TrainSection
from prune2deploy.report import LayerWeights
from prune2deploy.train import Checkpoint, Hooks, fit

log = logging.getLogger(__name__)

_HALF = 0.5
"""What the pattern 2:4 keeps."""

_NO_SPEED = (
    "Zeros alone make no network faster on a dense runtime, such as ONNX Runtime on a CPU, nor "
    "its file smaller: they are computed with and stored like other numbers. They pay off in a "
    "compressed file, or where kernels skip them."
)
_SPARSE_KERNELS = "For 2:4 there are such kernels in TensorRT, on GPUs with sparse tensor cores."


def weight_masks(
    model: nn.Module,
    method: str | WeightMethod[Any] = "han",
    *,
    budget: Mapping[str, object],
    exclude: Collection[str] = (),
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Decide which single weights of a model stay.

    `prune2deploy.methods.common.weights.MaskKeeper` sets the others to zero and keeps them there.

    Args:
        model: left alone.
        method: a name, or a method that has been trained with its hooks.
        budget: {"weights": share} or {"pattern": "2:4"}; the share of the weights of
            convolutions and linear layers that is *kept*, in (0, 1).
        exclude: names or shell patterns of parameters or modules that stay whole.
        seed: of everything that is random.
        options: the method's own options.

    Returns:
        Per parameter that takes part a bool tensor of its shape; True: the weight stays.

    Raises:
        MethodError: unknown method or option, a method for channels, or nothing to zero.
        BudgetError: the budget is malformed, or the method cannot keep it.
    """
    chosen = make_weight_method(method, options) if isinstance(method, str) else method
    return chosen.masks(asked_weights(model, chosen, budget, exclude, seed))


def make_weight_method(name: str, options: Mapping[str, Any]) -> WeightMethod[Any]:
    """Build a method for single weights by name.

    Raises:
        MethodError: no such method or option, or a method for channels.
    """
    method = make_method(name, options)
    if not isinstance(method, WeightMethod):
        raise MethodError(
            f"{name} scores channels and has no masks of weights. Make a plan with "
            "prune2deploy.plan, or choose a method for weights, for example han."
        )
    return method


def asked_weights(
    model: nn.Module,
    method: WeightMethod[Any],
    budget: Mapping[str, object],
    exclude: Collection[str],
    seed: int,
) -> Weights:
    """The weights that take part, with what the budget asks for.

    Raises:
        ModelError: a pattern in `exclude` matches nothing.
        MethodError: no weight takes part.
        BudgetError: see `weight_masks`.
    """
    check_exclude(model, exclude)
    names = prunable(model, exclude)
    if len(budget) != 1 or next(iter(budget)) not in method.budgets:
        raise BudgetError(
            f"A budget of {method.name} is exactly one of {', '.join(method.budgets)}; found: "
            f"{', '.join(budget) or 'nothing'}. For example budget={{'weights': 0.2}}."
        )
    unit, asked = next(iter(budget.items()))
    if unit == "pattern":
        if asked != "2:4":
            raise BudgetError(f"budget pattern: found {asked!r}, expected '2:4', the only one.")
        if not any(takes_pattern(model, name) for name in names):
            raise BudgetError(
                "No layer has a number of input channels that is a multiple of 4, which the "
                "pattern 2:4 needs. Use the budget 'weights'."
            )
        return Weights(model, names, _HALF, "2:4", seed)
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not 0 < asked < 1:
        raise BudgetError(
            f"budget weights: {asked} is not a share between 0 and 1 (the part that is kept)."
        )
    return Weights(model, names, float(asked), None, seed)


def prune_weights(
    recipe: Recipe, inputs: Inputs, original: nn.Module, checkpoints: Checkpoints = NOWHERE
) -> Pruned:
    """Zero single weights of a trained model as the recipe says. `original` is left alone.

    checkpoints: trainings go on from there.

    Raises:
        MethodError: there is nothing to zero.
    """
    section = recipe.prune
    method = make_weight_method(section.method, section.options)
    model = copy.deepcopy(original)
    weights = asked_weights(model, method, section.budget.asked(), section.exclude, recipe.seed)
    if section.train is not None:
        method.begin(weights)
        try:
            label = f"Training for {method.name}"
            stands = checkpoints.named("prune train")
            _train(recipe, inputs, model, original, section.train, method, label, stands)
        finally:
            method.detach()
    rounds = section.schedule.rounds
    masks: Masks = {}
    for number in range(1, rounds + 1):
        share = weights.share ** (number / rounds)
        masks = method.masks(replace(weights, share=share, held=masks))
        keeper = MaskKeeper(model, masks)
        keeper.apply()
        kept = sum(int(mask.sum()) for mask in masks.values())
        log.info("Round %d of %d: %d weights stay", number, rounds, kept)
        last = number == rounds
        checkpoint = checkpoints.named(f"round {number}")
        _train_on(recipe, inputs, original, method, weights, keeper, last, checkpoint)
    notes = [*_notes(weights, masks), *method.notes()]
    return Pruned(model, Plan({}, {}, notes=tuple(notes)), masks=masks)


def _train_on(
    recipe: Recipe,
    inputs: Inputs,
    original: nn.Module,
    method: WeightMethod[Any],
    weights: Weights,
    keeper: MaskKeeper,
    last: bool,
    checkpoint: Checkpoint | None,
) -> None:
    """What follows on zeroing weights: another training, or at least renewed statistics."""
    section, model = recipe.prune, weights.model
    if method.rounds == "train":
        assert section.train is not None
        first = method.restart(weights, last)
        keeper.apply()
        label = "Training what is left"
        _train(
            recipe,
            inputs,
            model,
            original,
            section.train,
            keeper,
            label,
            checkpoint,
            first_step=first,
        )
        return
    if section.recalibrate:
        recalibrate(recipe, inputs, model)
    epochs = section.schedule.finetune_epochs
    if not last and epochs > 0:
        assert recipe.finetune is not None
        label = "Training between rounds"
        _train(
            recipe,
            inputs,
            model,
            original,
            recipe.finetune,
            keeper,
            label,
            checkpoint,
            epochs=epochs,
        )


def _train(
    recipe: Recipe,
    inputs: Inputs,
    model: nn.Module,
    original: nn.Module,
    section: TrainSection,
    hooks: Hooks,
    label: str,
    checkpoint: Checkpoint | None,
    *,
    epochs: float | None = None,
    first_step: int = 0,
) -> None:
    settings = train_settings(section, recipe, epochs)
    fit(
        model,
        inputs.task,
        inputs.data,
        replace(settings, first_step=first_step),
        hooks=hooks,
        teacher=original if settings.distill else None,
        seed=recipe.seed,
        label=label,
        checkpoint=checkpoint,
    )


def layer_weights(model: nn.Module, masks: Masks) -> list[LayerWeights]:
    """Count the weights of each layer that takes part, and those that are not zero."""
    found = []
    for name in masks:
        weight = model.get_parameter(name)
        kept = int(weight.count_nonzero())
        found.append(LayerWeights(layer=name, weights=weight.numel(), kept=kept))
    return found


def _notes(weights: Weights, masks: Masks) -> list[str]:
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    notes = [
        f"Kept: {kept / total:.1%} of the {total:,} weights of convolutions and linear layers that "
        "take part; the others are exactly zero, in the ONNX file too.",
        _NO_SPEED if weights.pattern is None else f"{_NO_SPEED} {_SPARSE_KERNELS}",
    ]
    if weights.pattern is not None:
        dense = [name for name in masks if not takes_pattern(weights.model, name)]
        if dense:
            notes.append(
                f"Left dense, as their input channels are no multiple of 4: {', '.join(dense)}."
            )
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        notes.append(
            f"No weight is left of: {', '.join(empty)}. Nothing passes through these layers; "
            "exclude them (prune.exclude), or keep more."
        )
    return notes
