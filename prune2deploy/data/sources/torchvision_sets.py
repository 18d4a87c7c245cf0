"""Data sets of torchvision that lie on this disk already; nothing is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torchvision

from prune2deploy.data.base import BadImageError, Found, Labels, Request, Split, SplitName
from prune2deploy.data.memory import label_array
from prune2deploy.errors import DataError, nearest_name_hint

_TRAIN_FLAG: Mapping[SplitName, Any] = {"train": True, "test": False}
_TRAIN_TEST: Mapping[SplitName, Any] = {"train": "train", "test": "test"}
_TRAIN_VAL_TEST: Mapping[SplitName, Any] = {"train": "train", "val": "val", "test": "test"}
_TRAIN_VALID_TEST: Mapping[SplitName, Any] = {"train": "train", "val": "valid", "test": "test"}
#: The public test labels of these are withheld or missing: their val set is the test set.
_VAL_AS_TEST: Mapping[SplitName, Any] = {"train": "train", "test": "val"}

#: name -> (argument that chooses the split, its value for each of our splits)
SETS: dict[str, tuple[str, Mapping[SplitName, Any]]] = {
    "CIFAR10": ("train", _TRAIN_FLAG),
    "CIFAR100": ("train", _TRAIN_FLAG),
    "Country211": ("split", _TRAIN_VALID_TEST),
    "DTD": ("split", _TRAIN_VAL_TEST),
    "FGVCAircraft": ("split", _TRAIN_VAL_TEST),
    "FashionMNIST": ("train", _TRAIN_FLAG),
    "Flowers102": ("split", _TRAIN_VAL_TEST),
    "Food101": ("split", _TRAIN_TEST),
    "GTSRB": ("split", _TRAIN_TEST),
    "ImageNet": ("split", _VAL_AS_TEST),
    "Imagenette": ("split", _VAL_AS_TEST),
    "KMNIST": ("train", _TRAIN_FLAG),
    "MNIST": ("train", _TRAIN_FLAG),
    "OxfordIIITPet": ("split", {"train": "trainval", "test": "test"}),
    "STL10": ("split", _TRAIN_TEST),
    "SVHN": ("split", _TRAIN_TEST),
    "StanfordCars": ("split", _TRAIN_TEST),
    "USPS": ("train", _TRAIN_FLAG),
}


class TorchvisionImages:
    """A data set of torchvision whose unreadable images are told apart from our own bugs."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, target = self._dataset[index]
        except (OSError, SyntaxError, EOFError) as err:
            raise BadImageError(f"number {index} of {self._name}", str(err)) from err
        return image, int(target)


def find(request: Request) -> Found:
    """Return torchvision's data set `request.name` below data.root.

    data.args are passed on to its class.

    Raises:
        DataError: unknown name, no root, files missing, or arguments it does not take.
    """
    name = request.name
    if name not in SETS:
        raise DataError(
            f"Source 'torchvision:{name}' does not exist here. {nearest_name_hint(name, SETS)} "
            "For another one write a function that returns it: data.source file.py:function."
        )
    if request.root is None:
        raise DataError(f"Source 'torchvision:{name}' needs data.root: the folder that holds it.")
    argument, values = SETS[name]
    splits: dict[SplitName, Split] = {}
    digest = hashlib.sha256()
    classes: tuple[str, ...] | None = None
    for split, value in values.items():
        dataset = _open(request, {**request.args, argument: value})
        labels = _labels(dataset)
        digest.update(labels.tobytes())
        samples = TorchvisionImages(dataset, f"torchvision:{name} {split}")
        splits[split] = Split(samples, labels)
        if split == "train":
            classes = _class_names(dataset, labels)
    return Found(splits, classes, f"labels-sha256:{digest.hexdigest()}", kind="images")


def _open(request: Request, arguments: dict[str, Any]) -> Any:
    try:
        return getattr(torchvision.datasets, request.name)(str(request.root), **arguments)
    # What is missing on disk shows as RuntimeError from most sets, as OSError from some.
    except (RuntimeError, OSError) as err:
        raise DataError(
            f"torchvision:{request.name} was not found in {request.root}: {err} "
            'Nothing is downloaded here; fetch it once with python -c "import torchvision; '
            f"torchvision.datasets.{request.name}('{request.root}', download=True)\", "
            "or correct data.root."
        ) from err
    except (TypeError, ValueError) as err:
        raise DataError(
            f"torchvision:{request.name} does not take data.args {dict(request.args)}: {err} "
            "Correct or remove data.args."
        ) from err


def _labels(dataset: Any) -> Labels:
    # torchvision has no one name for them; those without any are read through once.
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return label_array([int(label) for label in getattr(dataset, attribute)])
    if hasattr(dataset, "_samples"):
        return label_array([int(sample[1]) for sample in dataset._samples])
    return label_array([int(dataset[index][1]) for index in range(len(dataset))])


def _class_names(dataset: Any, labels: Labels) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if not names:
        return tuple(str(number) for number in range(int(labels.max()) + 1))
    # ImageNet has several names per class.
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)
