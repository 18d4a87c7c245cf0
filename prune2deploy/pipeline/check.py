"""`check` and `inspect`: all that can be known about a recipe or a model without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prune2deploy.channels import Graph, trace
from prune2deploy.methods import METHODS
from prune2deploy.models import check_forward, load_model
from prune2deploy.pipeline.deploy import devices_for
from prune2deploy.pipeline.inputs import Inputs, open_inputs
from prune2deploy.pipeline.pruning import round_to_of
from prune2deploy.pipeline.tracking import check_tracking
from prune2deploy.pipeline.weights import weight_masks
from prune2deploy.planning.plan import plan
from prune2deploy.recipe import Recipe
from prune2deploy.report import CheckReport, LayerWeights


def check_recipe(recipe: Recipe) -> CheckReport:
    """Open data and model, trace, and plan; no image is decoded and nothing is trained.

    Raises:
        Prune2DeployError: the first thing that does not fit.
    """
    check_tracking(recipe.log)
    devices_for(recipe)
    inputs = open_inputs(recipe)
    graph = trace(inputs.model, inputs.example, recipe.prune.exclude)
    layers: list[LayerWeights] = []
    if METHODS[recipe.prune.method].granularity == "weight":
        layers = _layers(recipe, inputs)
        planned = graph.plan([np.arange(group.size) for group in graph.groups])
    elif recipe.prune.budget.timed:
        note = "The widths are found when the network is measured; nothing is measured here."
        planned = graph.plan([np.arange(group.size) for group in graph.groups], [note])
    else:
        planned = plan(
            graph,
            "l1",
            budget=recipe.prune.budget.target(),
            round_to=round_to_of(recipe)[0],
            min_channels=recipe.prune.min_channels,
        )
    kept = graph.counts(planned)
    return CheckReport(
        name=recipe.name,
        source=recipe.model.source,
        method=recipe.prune.method,
        classes=inputs.data.classes,
        images={split: inputs.data.size(split) for split in ("train", "val", "test")},
        output=inputs.output.description,
        graph=graph,
        plan=planned,
        macs=(graph.cost.macs(graph.full), graph.cost.macs(kept)),
        params=(graph.cost.params(graph.full), graph.cost.params(kept)),
        layers=layers,
    )


def _layers(recipe: Recipe, inputs: Inputs) -> list[LayerWeights]:
    """What stays of each layer by the magnitude of its weights now."""
    prune = recipe.prune
    masks = weight_masks(inputs.model, budget=prune.budget.asked(), exclude=prune.exclude)
    return [
        LayerWeights(layer=name, weights=mask.numel(), kept=int(mask.sum()))
        for name, mask in masks.items()
    ]


def inspect_model(
    source: str,
    *,
    args: Mapping[str, Any],
    checkpoint: Path | None,
    input_shape: tuple[int, int, int],
    num_classes: int | None,
    base_dir: Path,
) -> Graph:
    """Build a model and trace it.

    Raises:
        ModelError: it cannot be built, loaded or run on an input of this shape.
    """
    model = load_model(
        source, args, base_dir=base_dir, num_classes=num_classes, checkpoint=checkpoint
    )
    check_forward(model, input_shape)
    return trace(model, torch.randn(1, *input_shape))
