"""`check` and `inspect`: all that can be known about a recipe or a model without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prune2deploy.channels import Graph, trace
from prune2deploy.models import check_forward, load_model
from prune2deploy.pipeline.inputs import open_inputs
from prune2deploy.pipeline.planning import plan
from prune2deploy.recipe import Recipe
from prune2deploy.report import CheckReport


def check_recipe(recipe: Recipe) -> CheckReport:
    """Open data and model, trace, and plan; no image is decoded and nothing is trained.

    Raises:
        Prune2DeployError: the first thing that does not fit.
    """
    inputs = open_inputs(recipe)
    graph = trace(inputs.model, inputs.example, recipe.prune.exclude)
    planned = plan(
        graph,
        "l1",
        budget=recipe.prune.budget.target(),
        round_to=recipe.prune.round_to,
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
    )


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
