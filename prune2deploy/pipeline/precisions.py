"""The pruned network in fp16 and int8: written, judged on the test images, and described."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prune2deploy import progress
from prune2deploy.data import Loader
from prune2deploy.devices import CommonSettings
from prune2deploy.errors import ExportError
from prune2deploy.export.parity import OnnxModel
from prune2deploy.export.precision import (
    compare_files,
    precision_of,
    to_fp16,
    to_int8,
    to_int8_within,
)
from prune2deploy.latency.profile import NVIDIA
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs
from prune2deploy.recipe import ExportSection
from prune2deploy.report import PrecisionFigures

log = logging.getLogger(__name__)

_JUDGED = 1024
"""Training images on which int8 files are compared where there are no validation images."""

_COMPARED = 256
"""Test images on which a file is compared with the fp32 one, number by number."""


def onnx_metrics(path: Path, inputs: Inputs, loader: Loader, label: str) -> dict[str, float]:
    """What the task measures when ONNX Runtime runs the file.

    Raises:
        ExportError: the file cannot be run, or has several outputs.
    """
    with OnnxModel(path) as model, progress.task(label, len(loader)) as shown:

        def predict(images: Tensor) -> Tensor:
            outputs = model.predict(images)
            shown.advance(1)
            if len(outputs) != 1:
                raise ExportError(
                    f"{path} has {len(outputs)} outputs; lower precisions are judged for networks "
                    "with one. Write export.precision: fp32."
                )
            return next(iter(outputs.values()))

        return inputs.task.evaluate(predict, loader)


def lower_precisions(
    source: Path,
    targets: Mapping[str, Path],
    section: ExportSection,
    inputs: Inputs,
    devices: Sequence[CommonSettings],
    seed: int,
) -> list[PrecisionFigures]:
    """Write the files that the recipe asks for beside fp32, and judge each.

    Args:
        source: the pruned network in fp32. targets: where each precision goes.
        devices: those that the network is measured on, for they decide the kind of int8.

    Raises:
        ExportError: a file cannot be made, or no int8 version is good enough.
    """
    images = _images(inputs, section.int8.images, seed)
    found = []
    for precision, target in targets.items():
        with progress.task(f"Writing {precision}"):
            if precision == "fp16":
                kept = dict(to_fp16(source, target, batches=images).kept)
            else:
                kept = _int8(source, target, section, inputs, images, devices, seed)
        found.append(_figures(precision, source, target, inputs, kept))
    return found


def _int8(
    source: Path,
    target: Path,
    section: ExportSection,
    inputs: Inputs,
    images: Sequence[NDArray[np.float32]],
    devices: Sequence[CommonSettings],
    seed: int,
) -> dict[str, str]:
    """Write the int8 file; returns the layers that had to stay fp32, and what they cost."""
    options = section.int8
    runtime: Literal["onnxruntime", "tensorrt"] = (
        "tensorrt" if any(one.runtime in NVIDIA for one in devices) else "onnxruntime"
    )
    if options.allowed_drop is None:
        to_int8(source, target, batches=images, method=options.calibration, runtime=runtime)
        return {}
    sign = 1.0 if inputs.task.higher_is_better else -1.0

    def judge(path: Path) -> float:
        loader = _judging(inputs, seed)
        return sign * onnx_metrics(path, inputs, loader, "Trying int8")[inputs.task.metric]

    held = to_int8_within(
        source,
        target,
        judge=judge,
        floor=judge(source) - options.allowed_drop,
        batches=images,
        method=options.calibration,
        runtime=runtime,
    )
    return {
        one.layer: f"alone in int8 it changes the outputs by {one.rms_rel_diff:.1%}"
        for one in held.given_back
    }


def _images(inputs: Inputs, count: int, seed: int) -> list[NDArray[np.float32]]:
    """Training images without augmentation, as the model sees them."""
    loader = inputs.data.loader(
        "train", batch_size=EVALUATION_BATCH, shuffle=True, seed=seed + 3, limit=count
    )
    return [images.numpy() for images, _ in loader]


def _judging(inputs: Inputs, seed: int) -> Loader:
    """Validation images, or else training images: never those that figures are of."""
    if inputs.data.size("val"):
        return inputs.data.loader("val", batch_size=EVALUATION_BATCH)
    return inputs.data.loader(
        "train", batch_size=EVALUATION_BATCH, shuffle=True, seed=seed + 4, limit=_JUDGED
    )


def _figures(
    precision: str,
    source: Path,
    target: Path,
    inputs: Inputs,
    kept: Mapping[str, str],
) -> PrecisionFigures:
    layers: dict[str, int] = {name: count.layers for name, count in precision_of(target).items()}
    if not layers.get(precision):
        raise ExportError(
            f"{target} was to compute in {precision}, and no layer of it does ({layers}). Write "
            "export.precision: fp32, or look at what the log says of its layers."
        )
    loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
    metrics = onnx_metrics(target, inputs, loader, f"Testing ({precision})")
    test = inputs.data.loader("test", batch_size=EVALUATION_BATCH, limit=_COMPARED)
    deviation = compare_files(target, source, [images.numpy() for images, _ in test])
    log.info("%s: %s, layers %s", precision, metrics, layers)
    return PrecisionFigures(
        precision=precision,
        file=target.name,
        metrics=metrics,
        onnx_bytes=target.stat().st_size,
        layers=layers,
        kept=dict(kept),
        max_rel_difference=deviation.max_rel_diff,
        agreement=deviation.agreement,
    )
