"""Fixed random inputs for a model of any runtime."""

from __future__ import annotations

from typing import Any

from .job import Refusal


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
    return isinstance(dim, int) and dim > 0
