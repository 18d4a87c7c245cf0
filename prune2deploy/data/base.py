"""What the sources hand over and what a loader yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

#: Images, float32 (n, channels, height, width), normalised; and their targets.
Batch: TypeAlias = tuple[Tensor, Any]
#: Class number of each sample, shape (n,).
Labels: TypeAlias = npt.NDArray[np.int64]
SplitName: TypeAlias = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")


class Samples(Protocol):
    """Samples by number. An image is a PIL image or a tensor (channels, height, width).

    A uint8 tensor holds 0..255; a float tensor is taken as it is.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class BadImageError(Exception):
    """One image cannot be read; the loader decides what follows from that."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Split:
    """The samples of one split, none of them decoded yet."""

    samples: Samples
    #: Class numbers where they are known without decoding; they make a split stratified.
    labels: Labels | None = None


@dataclass(frozen=True)
class Found:
    """What a source has."""

    #: "train" always; "val" and "test" where the source brings its own.
    splits: Mapping[SplitName, Split]
    #: Class names by class number, or None where targets are no class numbers.
    classes: tuple[str, ...] | None
    #: Changes when the data changes; None where nobody can tell.
    fingerprint: str | None
    #: arrays lie in memory already; images are decoded from files; user datasets do as they like.
    kind: Literal["arrays", "images", "user"]
    #: Share for the test set where the source has none and the user asks for none.
    default_test_share: float | None = None


@dataclass(frozen=True)
class Request:
    """What the user said about the source."""

    #: The part of the source's name after the colon ("CIFAR10"), or the whole "file.py:function".
    name: str
    root: Path | None
    base_dir: Path
    #: (channels, height, width) that the model takes.
    input_shape: tuple[int, int, int]
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Augment:
    """What happens to training images.

    Args:
        flip: mirror left and right with probability one half.
        crop_padding: pad every side with this many black pixels, then cut the
            input size out at a random place.
        resized_crop: cut out a random part that covers at least this share of
            the image and resize it to the input (training on photographs uses
            0.08 to 0.5). None: resize and centre crop as in evaluation.
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: float | None = None
