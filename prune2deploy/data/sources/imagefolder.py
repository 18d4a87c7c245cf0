"""A folder per class, with or without a folder per split above them."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from PIL import Image

from prune2deploy.data.base import BadImageError, Found, Labels, Request, Split, SplitName
from prune2deploy.data.memory import label_array
from prune2deploy.errors import DataError

logger = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LAYOUTS = "root/train/<class>/*.jpg with root/test beside it, or root/<class>/*.jpg"


class ImageFiles:
    """Image files by number; reading one gives a PIL image that is fully decoded."""

    def __init__(self, paths: list[str], labels: Labels) -> None:
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image, int(self.labels[index])
        # Pillow's decoders raise whatever a broken file leads them into.
        except Exception as err:
            raise BadImageError(path, str(err) or type(err).__name__) from err


def find(request: Request) -> Found:
    """Return the images below data.root; class numbers follow the folders' alphabetical order.

    Raises:
        DataError: no such folder, none of the two layouts, an empty class folder,
            or splits with different classes.
    """
    if request.args:
        raise DataError(
            f"Source 'imagefolder' takes no data.args, got {sorted(request.args)}. Remove them."
        )
    root = _existing_root(request.root)
    folders = _split_folders(root)
    splits: dict[SplitName, Split] = {}
    digest = hashlib.sha256()
    classes = _class_names(folders["train"])
    for name, folder in folders.items():
        _check_same_classes(classes, folder)
        paths, labels = _list_images(folder, classes)
        for path in paths:
            # Sizes instead of contents: a large set is known in seconds.
            digest.update(f"{os.path.relpath(path, root)} {os.path.getsize(path)}\n".encode())
        splits[name] = Split(ImageFiles(paths, labels), labels)
    return Found(splits, classes, "names-and-sizes-sha256:" + digest.hexdigest(), kind="images")


def _existing_root(root: Path | None) -> Path:
    if root is None:
        raise DataError(f"Source 'imagefolder' needs data.root: a folder laid out as {_LAYOUTS}.")
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"data.root {root} {found}; expected a folder laid out as {_LAYOUTS}. "
            "Correct data.root, or unpack the images there."
        )
    return root


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Return the folder of each split; the root itself is "train" where there are none."""
    below = {entry.name.lower(): entry for entry in _folders(root)}
    if not below:
        raise DataError(f"data.root {root} has no folders in it; expected {_LAYOUTS}.")
    found: dict[SplitName, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        present = [below[name] for name in names if name in below]
        if len(present) > 1:
            raise DataError(
                f"{root} has both {present[0].name} and {present[1].name}, which mean the same "
                f"split ({split}). Keep one of them."
            )
        if present:
            found[split] = present[0]
    if not found:
        return {"train": root}
    if "train" not in found:
        raise DataError(
            f"{root} has {', '.join(p.name for p in found.values())} but no folder train; "
            f"expected {_LAYOUTS}."
        )
    ignored = sorted(set(below.values()) - set(found.values()))
    if ignored:
        text = ", ".join(folder.name for folder in ignored)
        logger.warning("%s: folder(s) ignored beside those of the splits: %s", root, text)
    return found


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(p.name for p in _folders(folder))
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} class folder(s){': ' + names[0] if names else ''}; "
            f"expected at least 2. Lay data.root out as {_LAYOUTS}."
        )
    return names


def _check_same_classes(classes: tuple[str, ...], folder: Path) -> None:
    here = [p.name for p in _folders(folder)]
    missing = sorted(set(classes) - set(here))
    extra = sorted(set(here) - set(classes))
    if missing or extra:
        details = "; ".join(
            f"{what}: {', '.join(names[:10])}"
            for what, names in (("missing", missing), ("only here", extra))
            if names
        )
        raise DataError(
            f"{folder} has {len(here)} classes, the train set has {len(classes)} ({details}). "
            "Every split needs the same class folders: add, rename or remove them."
        )


def _list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[str], Labels]:
    paths: list[str] = []
    labels: list[int] = []
    ignored = 0
    for number, name in enumerate(classes):
        here: list[str] = []
        for parent, folders, files in os.walk(folder / name, followlinks=True):
            folders.sort()
            visible = [file for file in sorted(files) if not file.startswith(".")]
            images = [file for file in visible if file.lower().endswith(_SUFFIXES)]
            ignored += len(visible) - len(images)
            here += [os.path.join(parent, file) for file in images]
        if not here:
            raise DataError(
                f"Class folder {folder / name} holds no image; expected files ending in "
                f"{' '.join(_SUFFIXES)}. Add images or remove the folder (in every split)."
            )
        paths += here
        labels += [number] * len(here)
    if ignored:
        logger.warning("%s: %d file(s) ignored that are no images by their name", folder, ignored)
    return paths, label_array(labels)
