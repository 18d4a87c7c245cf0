"""Open a data set by name, check what was asked of it, and split it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prune2deploy.data.base import SPLIT_NAMES, Augment, Found, Request, SplitName
from prune2deploy.data.dataset import DataSource, Part, Reading
from prune2deploy.data.memory import core_count
from prune2deploy.data.order import split_off
from prune2deploy.data.sources import NAMED, TORCHVISION_PREFIX, torchvision_sets, user
from prune2deploy.data.transforms import normalization
from prune2deploy.errors import DataError, nearest_name_hint

#: Images up to this size are kept in memory when they fit; photographs are not.
_SMALL_SIDE = 96
_MEMORY_LIMIT_BYTES = 2 * 2**30
_NO_AUGMENT = Augment()


def open_data(
    source: str,
    *,
    input_shape: tuple[int, int, int],
    root: Path | None = None,
    args: Mapping[str, Any] | None = None,
    base_dir: Path | None = None,
    normalize: str | Mapping[str, Sequence[float]] = "none",
    augment: Augment = _NO_AUGMENT,
    val: float = 0.0,
    test: float | None = None,
    workers: int | None = None,
    on_bad_image: str = "fail",
    resize: int | None = None,
    cache: str = "auto",
    split_seed: int = 0,
) -> DataSource:
    """Find the samples, check their layout and split them; decodes nothing.

    Args:
        source: imagefolder, digits, npz, torchvision:NAME, or file.py:function.
        input_shape: (channels, height, width) that the model takes.
        root: folder or file of the data, where the source has one.
        args: for torchvision's class or the user's function.
        base_dir: what a relative file.py is relative to; None: the current folder.
        normalize: see `normalization`.
        augment: for training images.
        val: share of the training images that becomes the val set; 0: none.
        test: share that becomes the test set, where the source has none.
        workers: processes that read what is not in memory. None: one per core (at
            most 8) for image files, none for a user's data sets.
        on_bad_image: "fail", or "skip" with a count in the log.
        resize: shorter side before the centre crop; None: an image of another size
            is scaled until it just covers the input.
        cache: "memory" decodes everything once, "disk" reads images whenever they
            are needed, "auto" takes memory for inputs up to 96 pixels a side that
            fit into 2 GiB, unless a resized crop needs the whole images.
        split_seed: the splits depend on it and on the shares alone.

    Raises:
        DataError: nothing there, a layout or value that does not fit; see each source.
    """
    request = Request(source, root, base_dir or Path.cwd(), input_shape, args or {})
    found = _find(request)
    _check_options(found, augment, on_bad_image, resize, cache, input_shape, source)
    statistics = normalization(normalize, input_shape[0])
    parts = _split(found, val, test, split_seed)
    if workers is None:
        workers = 0 if found.kind == "user" else min(8, core_count())
    reading = Reading(
        input_shape,
        statistics,
        augment,
        resize,
        on_bad_image,
        workers,
        in_memory=_keep_in_memory(found.kind, cache, parts, augment, input_shape),
        # Nobody promised that a user's data set bears several threads.
        threads=1 if found.kind == "user" else None,
    )
    return DataSource(
        classes=None if found.classes is None else list(found.classes),
        input_shape=input_shape,
        _parts=parts,
        _reading=reading,
        _facts={
            "source": source,
            "root": None if root is None else str(root),
            "fingerprint": found.fingerprint,
            "split_seed": split_seed,
        },
    )


def _find(request: Request) -> Found:
    source = request.name
    if source in NAMED:
        return NAMED[source](request)
    if source.startswith(TORCHVISION_PREFIX):
        name = source[len(TORCHVISION_PREFIX) :]
        return torchvision_sets.find(replace(request, name=name))
    if ".py:" in source:
        return user.find(request)
    known = [*NAMED, "torchvision:NAME", "file.py:function"]
    raise DataError(f"data.source '{source}' does not exist. {nearest_name_hint(source, known)}")


def _check_options(
    found: Found,
    augment: Augment,
    on_bad_image: str,
    resize: int | None,
    cache: str,
    input_shape: tuple[int, int, int],
    source: str,
) -> None:
    if on_bad_image not in ("fail", "skip"):
        raise DataError(f"data.on_bad_image is '{on_bad_image}'; expected fail or skip.")
    if cache not in ("auto", "memory", "disk"):
        raise DataError(f"data.cache is '{cache}'; expected auto, memory or disk.")
    if found.kind == "arrays" and (cache == "disk" or resize is not None):
        what = "data.cache: disk" if cache == "disk" else "data.resize"
        raise DataError(
            f"{what} is set, but the images of source '{source}' lie in memory at their final "
            f"size. Remove it."
        )
    if resize is not None and resize < max(input_shape[1:]):
        raise DataError(
            f"data.resize is {resize}, smaller than the model's input {input_shape}; expected at "
            f"least {max(input_shape[1:])}, because the centre crop must fit. Raise or remove it."
        )
    if augment.crop_padding < 0 or not 0 < (augment.resized_crop or 1) <= 1:
        raise DataError(
            f"data.augment has crop_padding {augment.crop_padding} and resized_crop "
            f"{augment.resized_crop}; expected 0 or more, and a share in (0, 1]. Correct them."
        )
    if augment.resized_crop is not None and (found.kind == "arrays" or cache == "memory"):
        raise DataError(
            "data.augment.resized_crop needs the images at their own size, but those of source "
            f"'{source}' are kept in memory at the model's input size. "
            "Set data.cache: disk, or use crop_padding instead."
        )
    moves = augment.flip or augment.crop_padding or augment.resized_crop is not None
    if found.kind == "user" and found.classes is None and moves:
        raise DataError(
            f"data.augment moves pixels, and the targets of {source} might have to move along "
            "(it returns no 'classes'). Augment inside your data set and remove data.augment."
        )


def _split(found: Found, val: float, test: float | None, seed: int) -> dict[SplitName, Part]:
    parts = {
        name: Part(split.samples, np.arange(len(split.samples)), split.labels)
        for name, split in found.splits.items()
    }
    _split_from_train(parts, "test", test, found, seed)
    _split_from_train(parts, "val", val or None, found, seed)
    return {name: parts[name] for name in SPLIT_NAMES if name in parts}


def _split_from_train(
    parts: dict[SplitName, Part], name: SplitName, share: float | None, found: Found, seed: int
) -> None:
    if name in parts:
        if share is not None:
            raise DataError(
                f"The data has a {name} set of its own ({len(parts[name].indices)} images), and "
                f"data.{name} asks to split {share:g} of the training images off. "
                f"Remove data.{name}, or the set."
            )
        return
    if share is None and name == "test":
        share = found.default_test_share
        if share is None:
            raise DataError(
                f"There is no test set; found only {', '.join(parts)}. Gates need images that "
                "training never saw: add a folder or key 'test', or set data.test to the share "
                "of the training images to split off, such as 0.2."
            )
    if share is None:
        return
    train = parts["train"]
    labels = None if train.labels is None else train.labels[train.indices]
    stays, goes = split_off(labels, len(train.indices), share, seed, name, found.classes)
    parts["train"] = Part(train.samples, train.indices[stays], train.labels)
    parts[name] = Part(train.samples, train.indices[goes], train.labels)


def _keep_in_memory(
    kind: str,
    cache: str,
    parts: Mapping[SplitName, Part],
    augment: Augment,
    input_shape: tuple[int, int, int],
) -> bool:
    if kind == "arrays" or cache == "memory":
        return True
    if kind == "user" or cache == "disk" or augment.resized_crop is not None:
        return False
    total_bytes = int(np.prod(input_shape)) * sum(len(part.indices) for part in parts.values())
    return max(input_shape[1:]) <= _SMALL_SIDE and total_bytes <= _MEMORY_LIMIT_BYTES
