"""How far two ONNX files are from each other on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prune2deploy.errors import ExportError
from prune2deploy.export.parity import OnnxModel
from prune2deploy.export.parity import compare as largest_difference
from prune2deploy.export.precision.samples import Batches


@dataclass(frozen=True)
class Difference:
    """How close one file came to another, over all samples."""

    max_rel_diff: float
    """Largest difference of one number, divided by the largest absolute value of that output in
    its batch."""
    equal_argmax: float | None
    """Share of equal answers, 0 to 1: the largest along the second axis of all outputs that have
    one; None where none has."""
    samples: int


def compare(a: Path, b: Path, batches: Batches) -> Difference:
    """Run both files on every batch; differences are relative to what `a` returns.

    Args:
        batches: float32 (n, channels, height, width) each.

    Raises:
        ExportError: a file cannot be run, they have other outputs, `a` returns NaN or
            infinity, or there are no samples.
    """
    worst, equal, answers, samples = 0.0, 0, 0, 0
    with OnnxModel(a) as first, OnnxModel(b) as second:
        for batch in batches:
            images = torch.from_numpy(batch)
            expected, found = first.predict(images), second.predict(images)
            _, relative = largest_difference(
                expected, found, tolerance=torch.inf, what=str(b), first_sample=samples
            )
            worst = max(worst, relative)
            for name, output in expected.items():
                if _has_classes(output):
                    same = output.argmax(dim=1) == found[name].argmax(dim=1)
                    equal, answers = equal + int(same.sum()), answers + same.numel()
            samples += len(images)
    if not samples:
        raise ExportError("There are no samples to compare the two ONNX files on.")
    return Difference(worst, equal / answers if answers else None, samples)


def _has_classes(output: Tensor) -> bool:
    return output.is_floating_point() and output.ndim > 1 and output.numel() > 0
