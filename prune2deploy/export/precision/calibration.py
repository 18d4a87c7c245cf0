"""From the values of activations to the ranges that int8 covers.

Three methods, from the same statistics:

- minmax: all that was seen. One outlier makes the steps coarse for everything else.
- percentile: the threshold that a share of all absolute values stays below. What is
  above it is clipped.
- entropy: the threshold at which the clipped and quantised distribution says most about
  the original one. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 38 to 40.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from prune2deploy.errors import ExportError, nearest_name_hint
from prune2deploy.export.precision.activations import (
    BINS,
    Images,
    Statistics,
    TensorStatistics,
    collect,
)
from prune2deploy.export.precision.graphs import load_graph

Method = Literal["minmax", "percentile", "entropy"]

DEFAULT_PERCENTILE = 99.99
# The levels of one sign. Thresholds are tried in steps of as many bins.
_LEVELS = 128
_STEP = 8


@dataclass(frozen=True)
class Calibration:
    """The range of every activation, in its own units."""

    ranges: Mapping[str, tuple[float, float]]
    """By the tensor's name: lowest and highest value that int8 has to represent."""
    method: Method
    samples: int


def calibrate(
    source: Path,
    batches: Iterable[Images],
    method: Method = "minmax",
    *,
    percentile: float = DEFAULT_PERCENTILE,
) -> Calibration:
    """Run the fp32 file on images and return the ranges of its activations.

    Memory does not grow with the number of images.

    Args:
        batches: float32 (n, channels, height, width), normalised as in training; read
            once. Some hundred training images do.
        percentile: share of the absolute values that is covered, in percent; for the
            method of that name only.

    Raises:
        ExportError: an unknown method, no images, or images that do not fit.
    """
    check_method(method, percentile)
    return ranges_from(collect(load_graph(source), batches), method, percentile=percentile)


def check_method(method: str, percentile: float) -> None:
    """Raise an ExportError unless there is such a method, with such a percentile."""
    if method not in get_args(Method):
        raise ExportError(
            f"Calibration method '{method}' does not exist. "
            + nearest_name_hint(method, get_args(Method))
        )
    if not 50 < percentile <= 100:
        raise ExportError(
            f"percentile is {percentile:g}; expected more than 50 and at most 100, as 99.99."
        )


def ranges_from(
    statistics: Statistics, method: Method, *, percentile: float = DEFAULT_PERCENTILE
) -> Calibration:
    """Return the ranges that a method reads off statistics."""
    ranges = {}
    for name, tensor in statistics.tensors.items():
        threshold = tensor.largest
        if method == "percentile":
            threshold = _percentile(tensor, percentile)
        elif method == "entropy":
            threshold = _entropy(tensor)
        ranges[name] = (max(tensor.lowest, -threshold), min(tensor.highest, threshold))
    return Calibration(ranges, method, statistics.samples)


def _percentile(tensor: TensorStatistics, percentile: float) -> float:
    share = np.cumsum(tensor.counts) / tensor.counts.sum()
    # The upper edge of the bin in which the share is reached.
    bins = int(np.searchsorted(share, percentile / 100)) + 1
    return min(tensor.largest, bins * tensor.end / BINS)


def _entropy(tensor: TensorStatistics) -> float:
    """Return the threshold with the smallest divergence between values and int8 values."""
    counts = tensor.counts.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= _LEVELS:
        return tensor.largest
    # The zeros behind a ReLU are exact in int8, whatever the threshold; as many as they
    # are, they would decide alone. TensorRT's own tools leave them out in the same way.
    counts[0] = counts[1]
    candidates = [*range(_LEVELS, used, _STEP), used]
    divergences = [_divergence(counts[:used], size) for size in candidates]
    best = candidates[int(np.argmin(divergences))]
    return float(min(tensor.largest, best * tensor.end / BINS))


def _divergence(counts: npt.NDArray[np.float64], size: int) -> float:
    """Return KL(p, q) over the first bins: p with clipped values in the last, q quantised."""
    kept = counts[:size]
    p = kept.copy()
    p[-1] += counts[size:].sum()
    level = np.arange(size) * _LEVELS // size
    filled = kept > 0
    sums = np.bincount(level, kept, _LEVELS)
    sizes = np.bincount(level, filled, _LEVELS)
    q = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    if not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    # A bin with only clipped values has p > 0 and q = 0; a small q makes it costly, not infinite.
    occupied = p > 0
    return float((p[occupied] * np.log(p[occupied] / np.maximum(q[occupied], 1e-9))).sum())
