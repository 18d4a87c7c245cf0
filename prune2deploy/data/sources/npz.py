"""Arrays in one .npz file.

Keys: x_train, y_train; x_test, y_test and x_val, y_val where there are such
sets; classes (names, in the order of the class numbers) if there are names.
x: uint8 (scaled to 0..1 by us) or float (taken as it is), shape (n, channels,
height, width), (n, height, width, channels), or (n, height, width) for one
channel. y: class numbers from 0, shape (n,) or (n, 1).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune2deploy.data.base import SPLIT_NAMES, Found, Labels, Request, Split, SplitName
from prune2deploy.data.memory import TensorSamples, label_array
from prune2deploy.errors import DataError

_KEYS = {f"{axis}_{split}" for axis in "xy" for split in SPLIT_NAMES} | {"classes"}


def find(request: Request) -> Found:
    """Return the arrays of the file that data.root names.

    Raises:
        DataError: no such file, unknown or missing keys, shapes or types other
            than described above, or classes that the train set lacks.
    """
    if request.args:
        raise DataError(f"Source 'npz' takes no data.args, got {sorted(request.args)}. Remove it.")
    path = _existing_file(request.root)
    arrays = _read(path)
    splits: dict[SplitName, Split] = {}
    for split in SPLIT_NAMES:
        if f"x_{split}" in arrays or f"y_{split}" in arrays or split == "train":
            images, labels = _pair(arrays, split, path)
            tensor = _nchw(images, f"x_{split}", request.input_shape)
            splits[split] = Split(TensorSamples(tensor, labels), labels)
    classes = _class_names(arrays, splits)
    fingerprint = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return Found(splits, classes, fingerprint, kind="arrays")


def _existing_file(path: Path | None) -> Path:
    if path is None or not path.is_file():
        found = "is not set" if path is None else f"{path} is no file"
        raise DataError(f"Source 'npz' needs data.root to be a .npz file, but it {found}.")
    return path


def _refuse_bombs(path: Path) -> None:
    """Refuse arrays that the machine has no memory for, before one is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # what is damaged is told by who reads it
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if inside > memory:
        raise DataError(
            f"{path} holds arrays of {inside / 1e9:,.1f} GB, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory. Take fewer or smaller images, or use a folder of "
            "images (source: imagefolder), which are read one by one."
        )


def _read(path: Path) -> dict[str, Any]:
    _refuse_bombs(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as err:
        raise DataError(
            f"{path} cannot be read as .npz ({err}); expected plain arrays without pickled "
            "objects. Write it with numpy.savez_compressed."
        ) from err
    unknown = sorted(set(arrays) - _KEYS)
    if unknown:
        raise DataError(
            f"{path} has unknown keys {', '.join(unknown)}; expected {', '.join(sorted(_KEYS))}. "
            "Rename or remove them."
        )
    return arrays


def _pair(arrays: dict[str, Any], split: str, path: Path) -> tuple[Any, Labels]:
    missing = [key for key in (f"x_{split}", f"y_{split}") if key not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks {' and '.join(missing)}; it has {', '.join(sorted(arrays)) or 'none'}. "
            "Save images as x_train and class numbers as y_train (and x_test, y_test)."
        )
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise DataError(
            f"y_{split} has shape {labels.shape} and type {labels.dtype}; expected "
            f"{len(images)} whole numbers, one class number per image of x_{split}."
        )
    if len(labels) == 0 or labels.min() < 0:
        found = "is empty" if len(labels) == 0 else f"holds the class number {labels.min()}"
        raise DataError(f"y_{split} {found}; expected class numbers from 0 upwards.")
    return images, label_array(labels)


def _nchw(images: Any, key: str, input_shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = input_shape
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(
            f"{key} has type {images.dtype}; expected uint8 (0..255) or float. Convert it."
        )
    shape = images.shape[1:]
    tensor = torch.from_numpy(images)
    if images.dtype != np.uint8:
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise DataError(f"{key} holds NaN or inf; expected finite values. Clean the array.")
    if shape == input_shape:
        return tensor
    if shape == (height, width, channels):
        return tensor.permute(0, 3, 1, 2)
    if shape == (height, width) and channels == 1:
        return tensor.unsqueeze(1)
    raise DataError(
        f"{key} has shape {images.shape}; the model's input {input_shape} needs "
        f"(n, {channels}, {height}, {width}) or (n, {height}, {width}, {channels}). "
        "Change model.input or the array."
    )


def _class_names(arrays: dict[str, Any], splits: dict[SplitName, Split]) -> tuple[str, ...]:
    labels = {name: split.labels for name, split in splits.items() if split.labels is not None}
    known = set(np.unique(labels["train"]).tolist())
    for name, numbers in labels.items():
        unseen = sorted(set(np.unique(numbers).tolist()) - known)
        if unseen:
            raise DataError(
                f"y_{name} holds the class numbers {unseen[:10]}, which y_train lacks. "
                "Every class needs training images."
            )
    count = max(known) + 1
    if "classes" not in arrays:
        return tuple(str(number) for number in range(count))
    names = tuple(str(name) for name in arrays["classes"].ravel())
    if len(names) < count:
        raise DataError(
            f"classes has {len(names)} names, y_train uses class numbers up to {count - 1}; "
            f"expected at least {count} names."
        )
    return names
