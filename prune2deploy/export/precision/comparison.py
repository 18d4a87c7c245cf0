"""How close does a low-precision file come to the fp32 file?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prune2deploy.errors import ExportError
from prune2deploy.export.parity import Agreement, OnnxModel, compare
from prune2deploy.export.precision.activations import Images


@dataclass(frozen=True)
class Deviation:
    """What a lower precision changed in the outputs, over all samples."""

    max_abs_diff: float
    """Largest difference of one number, in the units of the output."""
    max_rel_diff: float
    """Largest difference, divided by the largest absolute value of that output in its batch."""
    rms_rel_diff: float
    """Root of the summed squared differences, divided by that of the outputs themselves."""
    agreement: float | None
    """Share of samples answered alike, 0 to 1; None where nobody said what that means."""
    samples: int


def top1_agreement(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Return the share of samples whose largest score in the first output is the same class."""
    name = next(iter(expected))
    return float((expected[name].argmax(dim=1) == found[name].argmax(dim=1)).double().mean())


def compare_files(
    path: Path,
    reference: Path,
    batches: Iterable[Images],
    *,
    agreement: Agreement | None = top1_agreement,
) -> Deviation:
    """Run both files in ONNX Runtime on all images.

    Args:
        path: the low-precision file.
        reference: the fp32 file.
        batches: float32 (n, channels, height, width), read once.
        agreement: compares the named outputs of a batch; None for models that do not
            classify.

    Raises:
        ExportError: no images, other outputs, or a reference that is not finite. A
            difference is no error, however large.
    """
    with OnnxModel(reference) as model:
        pairs = ((images, model.predict(images)) for images in map(torch.as_tensor, batches))
        return deviation(path, pairs, agreement=agreement)


def deviation(
    path: Path,
    pairs: Iterable[tuple[Tensor, Mapping[str, Tensor]]],
    *,
    agreement: Agreement | None = top1_agreement,
) -> Deviation:
    """The same with the reference's outputs at hand. pairs: (images, outputs) per batch."""
    worst_abs = worst_rel = alike = noise = signal = 0.0
    samples = 0
    with OnnxModel(path) as model:
        for images, expected in pairs:
            found = model.predict(images)
            absolute, relative = compare(
                expected, found, tolerance=math.inf, what=str(path), first_sample=samples
            )
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
            for name, tensor in expected.items():
                difference = found[name].double() - tensor.double()
                noise += float(difference.nan_to_num(nan=torch.inf).square().sum())
                signal += float(tensor.double().square().sum())
            if agreement is not None:
                alike += agreement(expected, found) * len(images)
            samples += len(images)
    if not samples:
        raise ExportError("There are no images to compare the files on. Give at least one batch.")
    rms = math.sqrt(noise / signal) if signal else (math.inf if noise else 0.0)
    share = None if agreement is None else alike / samples
    return Deviation(worst_abs, worst_rel, rms, share, samples)
