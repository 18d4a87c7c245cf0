"""An open data set: its splits, and loaders that hand out batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prune2deploy.data.base import Augment, Batch, Labels, Samples, SplitName
from prune2deploy.data.memory import Decoded, decode
from prune2deploy.data.order import BatchPlan, plan_batches
from prune2deploy.data.transforms import to_input, to_model_input
from prune2deploy.data.workers import OnDemand
from prune2deploy.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How images are read and prepared; see `open_data`."""

    input_shape: tuple[int, int, int]
    statistics: tuple[list[float], list[float]] | None
    augment: Augment
    resize: int | None
    on_bad_image: str
    workers: int
    in_memory: bool
    #: Threads that decode into memory; None: one per core.
    threads: int | None


@dataclass(frozen=True)
class Part:
    """One split: which samples of which set."""

    samples: Samples
    indices: Labels
    #: Of all samples, not only of these.
    labels: Labels | None


class Loader:
    """The batches of one epoch; iterating again gives the same batches again."""

    def __init__(
        self,
        reader: Decoded | OnDemand,
        plans: Sequence[BatchPlan],
        augment: Augment | None,
        seed: tuple[int, ...],
        statistics: tuple[list[float], list[float]] | None,
        channels_last: bool,
    ) -> None:
        self._reader = reader
        self._plans = plans
        self._augment = augment
        self._seed = seed
        self._statistics = statistics
        self._channels_last = channels_last

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        for images, targets in self._reader.batches(self._plans, self._augment, self._seed):
            yield to_model_input(images, self._statistics, self._channels_last), targets


@dataclass
class DataSource:
    """An open data set; nothing is decoded before the first loader is asked for.

    Attributes:
        classes: names by class number, or None where targets are no class numbers.
        input_shape: (channels, height, width) of every image.
    """

    classes: list[str] | None
    input_shape: tuple[int, int, int]
    _parts: dict[SplitName, Part]
    _reading: Reading
    _facts: dict[str, Any]
    _decoded: dict[SplitName, Decoded] = field(default_factory=dict)

    @property
    def mean(self) -> list[float] | None:
        """What is subtracted per channel, for images scaled to 0..1; None: nothing."""
        return None if self._reading.statistics is None else self._reading.statistics[0]

    @property
    def std(self) -> list[float] | None:
        """What is divided by per channel, for images scaled to 0..1; None: nothing."""
        return None if self._reading.statistics is None else self._reading.statistics[1]

    def size(self, split: SplitName) -> int:
        """Return the number of samples, 0 where there is no such split.

        With on_bad_image "skip", images in memory are decoded for this and counted
        without the bad ones; images on disk are counted with them.
        """
        if split not in self._parts:
            return 0
        if self._reading.in_memory and self._reading.on_bad_image == "skip":
            self._in_memory(split)
        return self._count(split)

    def _count(self, split: SplitName) -> int:
        if split in self._decoded:
            return len(self._decoded[split].images)
        return len(self._parts[split].indices)

    def describe(self) -> dict[str, Any]:
        """Return what a report says about the data: plain values, ready for JSON."""
        return {
            **self._facts,
            "classes": None if self.classes is None else len(self.classes),
            "images": {name: self._count(name) for name in self._parts},
            "input_shape": list(self.input_shape),
            "mean": self.mean,
            "std": self.std,
        }

    def loader(
        self,
        split: SplitName,
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
        min_batch: int = 1,
        limit: int | None = None,
        skip_batches: int = 0,
        shard: tuple[int, int] = (0, 1),
        channels_last: bool = False,
    ) -> Loader:
        """Return the batches of one epoch.

        Args:
            split: train, val or test.
            batch_size: images per batch, over all shards.
            shuffle: random order; without it image folders come class by class.
            augment: apply the data set's augmentation (training images only).
            seed: order and augmentation depend on (seed, epoch) and on nothing else.
            epoch: from 0.
            drop_last: leave out a last batch that is not full.
            min_batch: a last batch with fewer images joins the one before it.
            limit: only this many images, the first of the order.
            skip_batches: go on after this many batches of the epoch.
            shard: (rank, number of ranks); every rank gets its part of every batch.
            channels_last: memory format of the images.

        Raises:
            DataError: there is no such split, or an image cannot be read.
            ValueError: augmentation asked for on another split than train.
        """
        if split not in self._parts:
            have = ", ".join(self._parts)
            raise DataError(
                f"There is no {split} set; this data has {have}. "
                f"Set data.{split} to the share of training images to split off."
            )
        if augment and split != "train":
            raise ValueError(f"augment is for training images, not for {split}")
        reader = self._in_memory(split) if self._reading.in_memory else self._on_demand(split)
        count = len(reader.images) if isinstance(reader, Decoded) else len(reader.indices)
        plans = plan_batches(
            count,
            batch_size,
            order_seed=(seed, epoch) if shuffle else None,
            limit=limit,
            drop_last=drop_last,
            min_batch=min_batch,
            skip=skip_batches,
            shard=shard,
        )
        return Loader(
            reader,
            plans,
            self._reading.augment if augment else None,
            (seed, epoch, shard[0]),
            self._reading.statistics,
            channels_last,
        )

    def _on_demand(self, split: SplitName) -> OnDemand:
        reading = self._reading
        part = self._parts[split]
        return OnDemand(
            part.samples,
            part.indices,
            reading.input_shape,
            reading.resize,
            reading.on_bad_image,
            reading.workers,
        )

    def _in_memory(self, split: SplitName) -> Decoded:
        if split not in self._decoded:
            part, reading = self._parts[split], self._reading
            self._decoded[split] = decode(
                part.samples,
                part.indices,
                lambda image: to_input(image, reading.input_shape, reading.resize),
                on_bad_image=reading.on_bad_image,
                label=f"Decoding {split} images",
                threads=reading.threads,
            )
        return self._decoded[split]
