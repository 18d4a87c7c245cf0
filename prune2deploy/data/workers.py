"""Large images and users' data sets: read batch by batch, in worker processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prune2deploy.data.base import Augment, BadImageError, Labels, Samples
from prune2deploy.data.memory import bad_image, log_bad, stack_targets
from prune2deploy.data.order import BatchPlan, generator_from, seed_from
from prune2deploy.data.transforms import crop_flip, random_resized_crop, to_input
from prune2deploy.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnDemand:
    """Samples that are read whenever they are needed.

    Args:
        samples: where they come from.
        indices: which of them make up this split.
        input_shape: (channels, height, width).
        resize: see `to_input`.
        on_bad_image: "fail" or "skip" (the batch gets smaller).
        workers: processes that read; 0 reads in this one.
    """

    samples: Samples
    indices: Labels
    input_shape: tuple[int, int, int]
    resize: int | None
    on_bad_image: str
    workers: int

    def batches(
        self, plans: Sequence[BatchPlan], augment: Augment | None, seed: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (n, height, width, channels) and targets, one plan after the other.

        Raises:
            DataError: an image that cannot be read, with on_bad_image "fail".
        """
        reader = _BatchReader(self, augment, seed)
        # A worker's item is a whole batch: what is random in it depends on the
        # batch's number alone, whichever worker makes it.
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=plans,
            num_workers=min(self.workers, len(plans)),
            collate_fn=_unchanged,
            # Otherwise it draws a number from torch's own generator.
            generator=generator_from(*seed, "workers"),
        )
        left_out: list[BadImageError] = []
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork in a process with threads; a worker
            # uses neither torch's threads nor any lock of ours.
            warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
            batches = iter(loader)
        for images, targets, bad, error in batches:
            if error is not None:
                raise error
            if bad and self.on_bad_image == "fail":
                raise bad_image(bad[0])
            left_out += bad
            if images is not None:
                yield images, targets
        log_bad(left_out)


def _unchanged(batch: Any) -> Any:
    return batch


class _BatchReader(Dataset[tuple[Any, ...]]):
    """Makes the batch of a plan, inside a worker process."""

    def __init__(self, source: OnDemand, augment: Augment | None, seed: tuple[int, ...]) -> None:
        self._source = source
        self._augment = augment
        self._seed = seed

    def __getitem__(
        self, plan: BatchPlan
    ) -> tuple[Tensor | None, Any, list[BadImageError], DataError | None]:
        """Return images, targets, what could not be read, and what the user must mend.

        Errors travel as values: raised in a worker, a traceback becomes their message.
        """
        # Data sets of users may draw from torch's own generator, as the resized crop
        # does; without workers that is the training loop's, which must not move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(*self._seed, "images", plan.number))
            try:
                images, targets, bad = self._read(plan)
            except DataError as err:
                return None, None, [], err
        if not images:
            return None, None, bad, None
        batch = torch.stack(images).permute(0, 2, 3, 1)
        augment = self._augment
        if augment is not None and (augment.flip or augment.crop_padding):
            generator = generator_from(*self._seed, "batch", plan.number)
            batch = crop_flip(batch, augment.crop_padding, augment.flip, generator)
        return batch, stack_targets(targets), bad, None

    def _read(self, plan: BatchPlan) -> tuple[list[Tensor], list[Any], list[BadImageError]]:
        images: list[Tensor] = []
        targets: list[Any] = []
        bad: list[BadImageError] = []
        for index in self._source.indices[plan.indices.numpy()].tolist():
            try:
                image, target = self._source.samples[index]
            except BadImageError as err:
                bad.append(err)
                continue
            images.append(self._to_tensor(image))
            targets.append(target)
        return images, targets, bad

    def _to_tensor(self, image: Any) -> Tensor:
        shape = self._source.input_shape
        if self._augment is not None and self._augment.resized_crop is not None:
            return random_resized_crop(image, shape, self._augment.resized_crop)
        return to_input(image, shape, self._source.resize)
