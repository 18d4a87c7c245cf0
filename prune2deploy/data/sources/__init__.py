"""Where samples come from: one file per kind of source, one line per file here."""

from __future__ import annotations

from collections.abc import Callable

from prune2deploy.data.base import Found, Request
from prune2deploy.data.sources import digits, imagefolder, npz, torchvision_sets, user

#: Sources with a plain name; "torchvision:NAME" and "file.py:function" are found by their form.
NAMED: dict[str, Callable[[Request], Found]] = {
    "digits": digits.find,
    "imagefolder": imagefolder.find,
    "npz": npz.find,
}
TORCHVISION_PREFIX = "torchvision:"

__all__ = [
    "NAMED",
    "TORCHVISION_PREFIX",
    "digits",
    "imagefolder",
    "npz",
    "torchvision_sets",
    "user",
]
