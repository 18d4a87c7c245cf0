"""The artifact of a run: dist/NAME in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prune2deploy.artifact import Preprocessing, Source, write_artifact
from prune2deploy.export.parity import OnnxModel
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.depends import code_of
from prune2deploy.pipeline.job import Job
from prune2deploy.recipe import dump_recipe
from prune2deploy.report import Metrics

_SAMPLES = 8
"""Test images that go along, so that a device's answers can be compared."""
_ROOMS = (
    "models",
    "data",
    "channels",
    "methods",
    "budget",
    "planning",
    "train",
    "export",
    "pipeline",
)


def write_dist(job: Job, metrics: Metrics, networks: Mapping[str, Path]) -> Path:
    """Write the artifact, and return its folder."""
    recipe, data = job.recipe, job.inputs.data
    precision = recipe.gated_precision
    gated = "pruned" if precision == "fp32" else f"pruned {precision}"
    others = {
        f"model.{name.removeprefix('pruned').strip() or 'fp32'}.onnx": path
        for name, path in networks.items()
        if name not in ("original", gated)
    }
    for one in metrics.engines:
        others[one.file] = job.folder.file(one.file)
        others[f"{one.file}.json"] = job.folder.file(f"{one.file}.json")
    loader = data.loader("test", batch_size=_SAMPLES, limit=_SAMPLES)
    samples = next(images for images, _ in loader)
    with OnnxModel(networks[gated]) as model:
        answers = model.predict(samples)
    folder = job.folder.file(files.DIST) / recipe.name
    write_artifact(
        Source(
            metrics=metrics,
            model=networks[gated],
            precision=precision,
            task=recipe.task if ".py" not in recipe.task else recipe.task.rpartition(":")[2],
            recipe_sha256=hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
            code_sha256=code_of(_ROOMS),
            labels=data.classes,
            preprocessing=Preprocessing(
                (recipe.export.onnx.batch, *data.input_shape),
                recipe.data.resize,
                data.mean,
                data.std,
            ),
            samples=np.ascontiguousarray(samples.numpy(), np.float32),
            answers={
                name: np.ascontiguousarray(value.numpy(), np.float32)
                for name, value in answers.items()
            },
            others=others,
        ),
        folder,
    )
    return folder
