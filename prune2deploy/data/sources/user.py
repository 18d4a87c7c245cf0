"""A function of the user's own that returns data sets.

It is called with data.args and returns a dictionary: "train" and, if there are
such sets, "val" and "test", each a map-style data set (a length, and an image
and target by number); "classes" with the class names if targets are class
numbers. Images are PIL images, uint8 tensors or float tensors (channels,
height, width). Targets may be anything: numbers and equal tensors are stacked,
dictionaries stay a list with one per image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune2deploy.data.base import SPLIT_NAMES, Found, Request, Split
from prune2deploy.errors import DataError
from prune2deploy.models import explain, import_from_file
from prune2deploy.models.user_code import importable, split_spec


def find(request: Request) -> Found:
    """Call the function `request.name` ("file.py:function") and return its data sets.

    Raises:
        DataError: it fails, or returns something else than described above.
    """
    function = import_from_file(request.name, request.base_dir, error=DataError)
    try:
        with importable(split_spec(request.name, request.base_dir)[0].parent):
            result = function(**request.args)
    # Whatever the user's function raises is the user's to mend; say where it happened.
    except Exception as err:
        raise DataError(
            f"data.source {request.name} failed: {explain(err)}. Mend the function or data.args."
        ) from err
    datasets = _checked(request.name, result)
    classes = datasets.pop("classes", None)
    return Found(
        splits={name: Split(datasets[name]) for name in SPLIT_NAMES if name in datasets},
        classes=None if classes is None else tuple(str(name) for name in classes),
        fingerprint=None,
        kind="user",
    )


def _checked(name: str, result: Any) -> dict[str, Any]:
    expected = (
        "expected a dictionary with the data set 'train' and, if you have them, 'val', 'test' "
        "and 'classes'. Change what the function returns."
    )
    if not isinstance(result, Mapping):
        raise DataError(f"data.source {name} returned {type(result).__name__}; {expected}")
    unknown = sorted(str(key) for key in set(result) - {*SPLIT_NAMES, "classes"})
    if unknown or "train" not in result:
        raise DataError(
            f"data.source {name} returned the keys {sorted(map(str, result))}; {expected}"
        )
    for split in SPLIT_NAMES:
        if split not in result:
            continue
        dataset = result[split]
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"data.source {name} returned {type(dataset).__name__} as '{split}'; expected a "
                "map-style data set with __len__ and __getitem__. Wrap it in one."
            )
        if len(dataset) == 0:
            raise DataError(f"data.source {name} returned an empty data set as '{split}'.")
    return dict(result)
