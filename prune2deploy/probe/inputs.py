"""Fixed random inputs for a model of any runtime, and facts about its outputs."""

from __future__ import annotations

import hashlib
from typing import Any

from .job import Refusal


def random_array(rng: Any, dtype: Any, shape: list[int]) -> Any:
    """Return an input of this type that any model should bear.

    rng: a numpy RandomState, whose numbers are the same in all versions of numpy.
    """
    import numpy as np

    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    # Wide integers and booleans are mostly indices and masks, where only 0 and 1 are always in
    # range; bytes are pixels.
    top = 2 if dtype.itemsize > 1 or dtype.kind == "b" else 128
    return np.asarray(rng.randint(0, top, size=shape), dtype)


def output_facts(name: str, value: Any) -> dict[str, Any]:
    """Return facts about an output array, to compare machines and repetitions."""
    import numpy as np

    array = np.ascontiguousarray(value)
    wide = array.astype(np.float64)
    finite = bool(np.isfinite(wide).all())
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "finite": finite,
        "mean": float(wide.mean()) if finite and wide.size else None,
    }


def fixed_shape(name: str, shape: list[Any], batch: int | None, first: bool) -> list[int]:
    """Return the shape with a dynamic first dimension filled in; refuse any other unknown size."""
    fixed = list(shape)
    if fixed and not is_size(fixed[0]):
        fixed[0] = batch
    if not all(is_size(dim) for dim in fixed):
        raise Refusal(
            "dynamic_shape",
            f"input '{name}' has shape {shape}; a measurement needs fixed sizes. Give a batch size "
            "for the first dimension, and export with fixed sizes for the others",
        )
    if first and batch is not None and shape and fixed[0] != batch:
        raise Refusal(
            "not_as_asked",
            f"batch {batch} was asked for, input '{name}' is fixed to {shape}. Export with that "
            "batch size, or leave the batch out",
        )
    return fixed


def is_size(dim: Any) -> bool:
    """Whether a dimension is a number."""
    return isinstance(dim, int) and dim > 0
