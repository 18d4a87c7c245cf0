"""The example of a task that is not classification."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prune2deploy.data import open_data
from prune2deploy.models import load_model
from prune2deploy.recipe import load_recipe
from prune2deploy.train import Distillation, TrainSettings, evaluate, fit, load_task

HERE = Path(__file__).parents[2] / "examples" / "segmentation"


@pytest.fixture
def task():
    return load_task("segmentation.py:Segmentation", HERE)


@pytest.fixture
def data():
    return open_data(
        "segmentation.py:shapes",
        base_dir=HERE,
        args={"train": 96, "test": 16},
        input_shape=(3, 32, 32),
    )


def model(seed=0):
    torch.manual_seed(seed)
    return load_model(
        "segmentation.py:build", {"width": 8}, base_dir=HERE, num_classes=None, checkpoint=None
    )


def test_intersection_over_union_by_hand(task):
    target = torch.tensor([[[0, 0, 1, 1]]])
    guess = torch.tensor([[[0, 1, 1, 1]]])
    logits = torch.nn.functional.one_hot(guess, 4).permute(0, 3, 1, 2).float()
    figures = task.evaluate(lambda images: logits, [(torch.zeros(1), target)])
    # Class 0: 1 of 2 pixels; class 1: 2 of 3; the others are nowhere.
    assert figures["miou"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert figures["pixel_accuracy"] == 75.0
    assert task.agreement(task.outputs(logits), task.outputs(logits.flip(3))) == 0.5


def test_segmenter_learns_from_targets_and_from_a_teacher(task, data):
    teacher, student = model(0), model(1)
    made = TrainSettings(epochs=8, lr=0.1, batch_size=16, precision="fp32")
    losses = [epoch.loss for epoch in fit(teacher, task, data, made).epochs]
    assert losses[-1] < 0.7 * losses[0]
    images = torch.cat([images for images, _ in data.loader("train", batch_size=16)])
    before = task.agreement(task.outputs(student(images)), task.outputs(teacher(images)))
    fit(student, task, data, replace(made, distill=Distillation()), teacher=teacher)
    assert before < 0.5
    assert task.agreement(task.outputs(student(images)), task.outputs(teacher(images))) > 0.8
    figures = evaluate(student, task, data.loader("test", batch_size=16))
    assert figures.keys() == {"miou", "pixel_accuracy"}


def test_images_and_masks_belong_together_and_repeat(data):
    ((images, masks),) = data.loader("test", batch_size=16)
    assert images.shape == (16, 3, 32, 32)
    assert set(masks.unique().tolist()) == {0, 1, 2, 3}
    # Where the mask is background, the image has one colour and noise of deviation 0.1.
    for image, mask in zip(images, masks, strict=True):
        deviation = image[:, mask == 0].std(dim=1)
        assert deviation.max() < 0.15


def test_recipe_is_valid():
    recipe = load_recipe(HERE / "recipe.yaml")
    assert recipe.task.endswith("segmentation.py:Segmentation")
