"""How a recipe names code and data: a built-in name, `kind:name`, or `file.py:name`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

MODEL_KINDS = ("torchvision", "timm", "cifar", "digits")
DATA_NAMES = ("imagefolder", "digits", "npz")
DATA_KINDS = ("torchvision",)
TASK_NAMES = ("classification",)

_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
_KIND = re.compile(r"(?P<kind>\w+):(?P<name>[\w.\-]+)")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_INPUT_SHAPES = {"cifar": (3, 32, 32), "digits": (1, 8, 8)}


def python_file(source: str) -> str | None:
    """Return the file part of `file.py:name`, or None for any other source."""
    match = _FILE.fullmatch(source)
    return match["file"] if match else None


def anchored(source: str, base: Path) -> str:
    """Return `file.py:name` with the file made absolute from `base`; other sources as they are."""
    file = python_file(source)
    if file is None:
        return source
    return f"{base / os.path.expanduser(file)}{source[len(file) :]}"


def default_input_shape(model_source: str) -> tuple[int, int, int]:
    """Return the usual (channels, height, width) of a model source."""
    return _INPUT_SHAPES.get(model_source.partition(":")[0], (3, 224, 224))


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of an image folder's splits: "train", "val", "test", as far as present.

    Where there are none, the root itself holds the class folders.
    """
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return {
        split: below[name]
        for split, names in _SPLIT_NAMES.items()
        for name in reversed(names)
        if name in below
    }


def check_source(
    source: str, what: str, names: Collection[str] = (), kinds: Collection[str] = ()
) -> str:
    """Return the source if it has one of the forms allowed here.

    Args:
        source: as written in the recipe.
        what: for the message, such as "model source".
        names: built-in names that stand alone.
        kinds: prefixes of `kind:name`.

    Raises:
        ValueError: it has none of the forms; the message lists them.
    """
    match = _KIND.fullmatch(source)
    if source in names or python_file(source) or (match and match["kind"] in kinds):
        return source
    forms = [*names, *(f"{kind}:NAME" for kind in kinds), "path/to/file.py:NAME"]
    close = difflib.get_close_matches(source.partition(":")[0], [*names, *kinds], n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"'{source}' is not a {what}.{hint} Expected {', '.join(forms)}.")
