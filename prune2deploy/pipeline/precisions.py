"""The pruned network in fp16 and int8: written, judged on the test images, and described."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.data import Loader
from prune2deploy.devices import CommonSettings
from prune2deploy.errors import ExportError
from prune2deploy.export import export_model_file, fold_batchnorm, onnx_metadata
from prune2deploy.export.onnx import write_whole
from prune2deploy.export.parity import OnnxModel
from prune2deploy.export.precision import (
    Runtime,
    compare_files,
    precision_of,
    round_like,
    to_fp16,
    to_int8,
    to_int8_within,
)
from prune2deploy.latency.options import BUILT
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


Train = Callable[[nn.Module], None]
"""Trains a network that computes with int8's rounding, in place."""


def lower_precisions(
    source: Path,
    targets: Mapping[str, Path],
    section: ExportSection,
    inputs: Inputs,
    devices: Sequence[CommonSettings],
    seed: int,
    model: nn.Module,
    train: Train | None = None,
) -> list[PrecisionFigures]:
    """Write the files that the recipe asks for beside fp32, and judge each.

    Args:
        source: the pruned network in fp32. targets: where each precision goes.
        devices: those that the network is measured on, for they decide the kind of int8.
        model: the network that `source` was exported from; left alone.
        train: for quantization-aware fine-tuning; None: there is none.

    Raises:
        ExportError: a file cannot be made, or no int8 version is good enough.
    """
    images = _images(inputs, section.int8.images, seed)
    found = []
    for precision, target in targets.items():
        with progress.task(f"Writing {precision}"):
            if precision == "fp16":
                kept = dict(to_fp16(source, target, batches=images).kept)
                found.append(_figures(precision, source, target, inputs, kept))
                continue
            int8 = _Int8(source, section, inputs, images, _kind(devices), seed)
            untrained = None
            if train is None or not int8.needs_training():
                kept = int8.write(source, target)
            elif (done := int8.write_trained(model, train, target)) is not None:
                untrained, kept = done
            else:
                log.warning(
                    "Training for int8 made it worse on the images that decide, and so the file "
                    "is made without it. Lower export.int8.finetune.lr, a tenth of it at first."
                )
                kept = int8.write(source, target)
            if section.int8.rest == "fp16":
                kept = int8.rest_in_fp16(target)
        figures = _figures(precision, source, target, inputs, kept)
        found.append(figures.model_copy(update={"without_training": untrained}))
    return found


def _kind(devices: Sequence[CommonSettings]) -> Runtime:
    return "tensorrt" if any(one.runtime in BUILT for one in devices) else "onnxruntime"


@dataclass(frozen=True)
class _Int8:
    """How int8 files are made and judged in one run."""

    source: Path
    section: ExportSection
    inputs: Inputs
    images: Sequence[NDArray[np.float32]]
    runtime: Runtime
    seed: int

    def judge(self, path: Path) -> float:
        """The metric on images that are not for figures, higher is better."""
        task = self.inputs.task
        loader = _judging(self.inputs, self.seed)
        value = onnx_metrics(path, self.inputs, loader, "Trying int8")[task.metric]
        return value if task.higher_is_better else -value

    def floor(self) -> float:
        """What an int8 file must reach."""
        assert self.section.int8.allowed_drop is not None
        return self.judge(self.source) - self.section.int8.allowed_drop

    def all_in_int8(self, source: Path, target: Path) -> None:
        """Write a file with all layers in int8, however good."""
        method = self.section.int8.calibration
        to_int8(source, target, batches=self.images, method=method, runtime=self.runtime)

    def needs_training(self) -> bool:
        """Whether int8 loses too much without it, or the recipe wants it in any case."""
        if self.section.int8.finetune_when == "always":
            return True
        with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:
            path = Path(folder) / "int8.onnx"
            self.all_in_int8(self.source, path)
            reached, floor = self.judge(path), self.floor()
        log.info("int8 without training reaches %.4g, %.4g is needed", reached, floor)
        return reached < floor

    def write(self, source: Path, target: Path) -> dict[str, str]:
        """Write the int8 file; returns the layers that had to stay fp32, and what they cost."""
        if self.section.int8.allowed_drop is None:
            self.all_in_int8(source, target)
            return {}
        held = to_int8_within(
            source,
            target,
            judge=self.judge,
            floor=self.floor(),
            batches=self.images,
            method=self.section.int8.calibration,
            runtime=self.runtime,
        )
        return {
            one.layer: f"alone in int8 it changes the outputs by {one.rms_rel_diff:.1%}"
            for one in held.given_back
        }

    def rest_in_fp16(self, target: Path) -> dict[str, str]:
        """Let what is not int8 in a file compute in fp16; returns what stays fp32, and why.

        Raises:
            ExportError: the file is for ONNX Runtime on a CPU, or cannot be converted.
        """
        if self.runtime != "tensorrt":
            raise ExportError(
                "export.int8.rest: fp16 is for TensorRT, and no device of profile.on has it. On a "
                "CPU fp16 is computed in fp32; remove it."
            )
        with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:
            path = Path(folder) / "mixed.onnx"
            mixed = to_fp16(target, path, batches=self.images)
            write_whole(target, path.read_bytes())
        return dict(mixed.kept)

    def write_trained(
        self, model: nn.Module, train: Train, target: Path
    ) -> tuple[dict[str, float], dict[str, str]] | None:
        """Train with int8's rounding, then write the int8 file.

        Returns:
            What int8 measures on the test images without the training, and what stayed fp32;
            None: the training made it worse, and nothing was written.
        """
        inputs, onnx = self.inputs, self.section.onnx
        with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:
            path, trained = Path(folder) / "int8.onnx", Path(folder) / "trained.onnx"
            self.all_in_int8(self.source, path)
            before = self.judge(path)
            aware = fold_batchnorm(model, inputs.example)
            rounding = round_like(aware, self.source, path)
            train(aware)
            rounding.remove()
            export_model_file(
                aware,
                trained,
                input_shape=inputs.data.input_shape,
                batch=onnx.batch,
                opset=onnx.opset,
                simplify=onnx.simplify,
                tolerance=onnx.tolerance,
                outputs=inputs.task.outputs,
                metadata=onnx_metadata(
                    input_shape=inputs.data.input_shape,
                    classes=inputs.data.classes,
                    mean=inputs.data.mean,
                    std=inputs.data.std,
                ),
            )
            self.all_in_int8(trained, target)
            after = self.judge(target)
            log.info("int8: %.4g before its training, %.4g after it", before, after)
            if after < before:
                target.unlink()
                return None
            test = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
            untrained = onnx_metrics(path, inputs, test, "Testing (int8, untrained)")
            return untrained, self.write(trained, target)


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
