"""Batches of images as a file with a static batch takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from prune2deploy.errors import ExportError

Batches = Iterable[NDArray[np.float32]]


def whole_batches(
    proto: onnx.ModelProto, batches: Batches, most: int | None = None
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the images again, as many at once as the file takes.

    What is missing in the last one is made up by repeating its last image.

    Args:
        batches: float32 (n, channels, height, width) each, n >= 1.
        most: images after which to stop; None: all.

    Yields:
        The input's name and the images.

    Raises:
        ExportError: the images do not fit the file, or hold NaN or infinity.
    """
    given = inputs(proto)[0]
    dims = [dim.dim_value or None for dim in given.type.tensor_type.shape.dim]
    size, left = dims[0], most
    for images in batches:
        _check(images, dims)
        images = images if left is None else images[:left]
        step = size or max(1, len(images))
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            if size and len(chunk) < size:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            yield {given.name: np.ascontiguousarray(chunk)}
        if left is not None:
            left -= len(images)
            if left == 0:
                return


def inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return what the model is fed with: in old files initializers are inputs too."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [given for given in proto.graph.input if given.name not in constants]


def _check(images: Any, dims: list[int | None]) -> None:
    fits = images.ndim == len(dims) and all(
        want is None or want == have for want, have in zip(dims[1:], images.shape[1:], strict=True)
    )
    if not fits or images.dtype != np.float32:
        shape = tuple("n" if dim is None else dim for dim in ("n", *dims[1:]))
        raise ExportError(
            f"The ONNX file takes float32 of shape {shape}; got {images.dtype} of shape "
            f"{tuple(images.shape)}. Prepare the images as for the model itself."
        )
    if not np.isfinite(images).all():
        raise ExportError("The images hold NaN or infinity. Check the normalisation of the input.")
