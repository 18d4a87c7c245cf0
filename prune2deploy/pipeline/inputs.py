"""From a recipe to an open data set, a task and a model, and training settings: the edge.

Below this file everything takes plain values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prune2deploy.data import Augment, DataSource, open_data
from prune2deploy.errors import DataError
from prune2deploy.models import OutputInfo, check_forward, load_model
from prune2deploy.recipe import Recipe, TrainSection
from prune2deploy.recipe.sections import Statistics
from prune2deploy.train import Distillation, Task, TrainSettings, load_task

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Inputs:
    """What a run starts from. output: what the model returns for a batch."""

    task: Task
    data: DataSource
    model: nn.Module
    output: OutputInfo
    example: Tensor


def open_inputs(recipe: Recipe) -> Inputs:
    """Open the data, build the model, load its weights, and see that they fit together.

    Raises:
        Prune2DeployError: whatever does not fit, with what was found and expected.
    """
    task = load_task(recipe.task, recipe.base_dir)
    data = open_recipe_data(recipe)
    classes = None if data.classes is None else len(data.classes)
    torch.manual_seed(recipe.seed)
    model = load_model(
        recipe.model.source,
        recipe.model.args,
        base_dir=recipe.base_dir,
        num_classes=classes,
        checkpoint=recipe.model.checkpoint,
    )
    output = check_forward(model, recipe.model.input)
    if classes is not None and output.classes is not None and output.classes != classes:
        raise DataError(
            f"The model has {output.classes} outputs, the data has {classes} classes. "
            "Set the model's number of classes (model.args), or use the data it was trained on."
        )
    if data.size("test") == 0:
        raise DataError(
            "There is no test set, and accuracy is judged on one. Add a folder 'test', or set "
            "data.test to the share of images to set aside."
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    example = torch.randn((1, *recipe.model.input), generator=generator)
    return Inputs(task, data, model, output, example)


def open_recipe_data(recipe: Recipe) -> DataSource:
    """Open the recipe's data set; nothing is decoded yet."""
    section = recipe.data
    normalize = section.normalize
    augment = section.augment
    return open_data(
        section.source,
        input_shape=recipe.model.input,
        root=section.root,
        args=section.args,
        base_dir=recipe.base_dir,
        normalize=(
            {"mean": list(normalize.mean), "std": list(normalize.std)}
            if isinstance(normalize, Statistics)
            else normalize
        ),
        augment=Augment(augment.flip, augment.crop_padding, augment.resized_crop),
        val=section.val,
        test=section.test,
        workers=section.workers,
        on_bad_image=section.on_bad_image,
        resize=section.resize,
        cache=section.cache,
        split_seed=recipe.seed,
    )


def train_settings(
    section: TrainSection, recipe: Recipe, epochs: float | None = None
) -> TrainSettings:
    """Turn a section into settings; `epochs` replaces the section's own (between rounds)."""
    length = section.epochs if epochs is None else epochs
    return TrainSettings(
        epochs=length,
        lr=section.lr,
        batch_size=recipe.data.batch_size,
        schedule=section.schedule,
        # A shorter run has a shorter warm-up, in proportion.
        warmup_epochs=section.warmup_epochs * length / section.epochs,
        milestones=section.milestones,
        gamma=section.gamma,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
        label_smoothing=section.label_smoothing,
        distill=(
            Distillation(section.distill.temperature, section.distill.alpha)
            if section.distill
            else None
        ),
        precision=section.precision,
        early_stop_patience=section.early_stop.patience if section.early_stop else None,
        grad_clip=section.grad_clip,
        accelerator=recipe.train.accelerator,
        devices=recipe.train.devices,
        num_nodes=recipe.train.num_nodes,
        strategy=recipe.train.strategy,
    )
