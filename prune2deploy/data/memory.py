"""Small images: decoded once, augmented in batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from prune2deploy import progress
from prune2deploy.data.base import Augment, BadImageError, Labels, Samples
from prune2deploy.data.order import BatchPlan, generator_from
from prune2deploy.data.transforms import crop_flip
from prune2deploy.errors import DataError

logger = logging.getLogger(__name__)

_CHUNK = 256


class TensorSamples:
    """Samples that lie in memory already.

    Args:
        images: (n, channels, height, width), uint8 or float32.
        labels: class numbers, shape (n,).
    """

    def __init__(self, images: Tensor, labels: Labels) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class Decoded:
    """Images (n, height, width, channels), uint8 or float32, and their targets."""

    images: Tensor
    targets: Any

    def batches(
        self, plans: Sequence[BatchPlan], augment: Augment | None, seed: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (n, height, width, channels) and targets, one plan after the other."""
        for plan in plans:
            images = self.images[plan.indices]
            if augment is not None and (augment.flip or augment.crop_padding):
                generator = generator_from(*seed, "batch", plan.number)
                images = crop_flip(images, augment.crop_padding, augment.flip, generator)
            yield images, pick(self.targets, plan.indices)


def pick(targets: Any, indices: Tensor) -> Any:
    """Return the targets of these samples: rows of a tensor, or items of a list."""
    if isinstance(targets, Tensor):
        return targets[indices]
    return [targets[i] for i in indices.tolist()]


def stack_targets(targets: list[Any]) -> Any:
    """Stack class numbers and tensors; dictionaries (boxes, say) stay a list, one per image."""
    if targets and isinstance(targets[0], dict):
        return targets
    return default_collate(targets)


def decode(
    samples: Samples,
    indices: Labels,
    to_tensor: Callable[[Any], Tensor],
    *,
    on_bad_image: str,
    label: str,
    threads: int | None = None,
) -> Decoded:
    """Read these samples into memory, on several threads.

    Args:
        samples: where they come from; must bear several threads unless `threads` is 1.
        indices: which of them.
        to_tensor: makes a tensor (channels, height, width) of an image.
        on_bad_image: "fail", or "skip": leave it out and log how many there were.
        label: for the progress bar, such as "Decoding train images".
        threads: how many; None: as many as there are cores for this process.

    Raises:
        DataError: a bad image (named) with "fail"; nothing left with "skip".
    """
    if isinstance(samples, TensorSamples):
        chosen = torch.from_numpy(indices)
        stored = samples.images[chosen].permute(0, 2, 3, 1).contiguous()
        return Decoded(stored, torch.from_numpy(samples.labels[indices]))

    def read(chunk: Labels) -> tuple[list[tuple[Tensor, Any]], list[BadImageError]]:
        good: list[tuple[Tensor, Any]] = []
        unreadable: list[BadImageError] = []
        for index in chunk.tolist():
            try:
                image, target = samples[index]
            except BadImageError as err:
                unreadable.append(err)
                continue
            good.append((to_tensor(image).permute(1, 2, 0), target))
        return good, unreadable

    chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    images: Tensor | None = None
    targets: list[Any] = []
    bad: list[BadImageError] = []
    with (
        progress.task(label, total=len(indices)) as shown,
        ThreadPoolExecutor(threads or core_count()) as pool,
    ):
        for chunk, (good, unreadable) in zip(chunks, pool.map(read, chunks), strict=True):
            if unreadable and on_bad_image == "fail":
                # Whatever still waits would be decoded for nothing.
                pool.shutdown(wait=False, cancel_futures=True)
                raise bad_image(unreadable[0])
            if good:
                stacked = torch.stack([image for image, _ in good])
                if images is None:
                    images = stacked.new_empty((len(indices), *stacked.shape[1:]))
                images[len(targets) : len(targets) + len(stacked)] = stacked
            targets += [target for _, target in good]
            bad += unreadable
            shown.advance(len(chunk))
    log_bad(bad)
    if images is None:
        raise DataError(f"{label}: all {len(bad)} images are unreadable. Check data.root.")
    return Decoded(images[: len(targets)], stack_targets(targets))


def core_count() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bad_image(err: BadImageError) -> DataError:
    """Return the error for an image that cannot be read."""
    return DataError(
        f"Image {err.name} cannot be read ({err.reason}); expected a whole image file. "
        "Mend or remove it, or set data.on_bad_image to skip."
    )


def log_bad(bad: Sequence[BadImageError]) -> None:
    """Say in the log which images were left out."""
    if bad:
        names = ", ".join(err.name for err in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        logger.warning("Left out %d unreadable image(s): %s%s", len(bad), names, more)


def label_array(labels: Sequence[int]) -> Labels:
    """Return class numbers as the array that splits and batches work with."""
    return np.asarray(labels, dtype=np.int64)
