"""What quantizing a layer costs, and int8 for as many layers as the accuracy allows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from prune2deploy import progress
from prune2deploy.errors import ExportError
from prune2deploy.export.precision.calibration import Method, Ranges, calibrated
from prune2deploy.export.precision.kinds import check_names, layer_names, read
from prune2deploy.export.precision.quantize import (
    QuantizedResult,
    Runtime,
    operators,
    readable,
    write_int8,
)
from prune2deploy.export.precision.samples import Batches, whole_batches
from prune2deploy.export.precision.sessions import session_of

_log = logging.getLogger(__name__)

#: Images that the error of one layer is measured on, once for every layer.
MOST_IMAGES = 64


@dataclass(frozen=True)
class LayerCost:
    """What one layer in int8 changes, all others being in fp32."""

    name: str
    """Of the node."""
    operator: str
    relative_error: float
    """Root of the summed squares of the outputs' errors, divided by that of the outputs."""


@dataclass(frozen=True)
class Within:
    """An int8 file that holds a floor."""

    result: QuantizedResult
    score: float
    """What the judge says of the file."""
    judged: tuple[tuple[int, float], ...]
    """All that was tried, in order: layers in fp32, and the score."""
    costs: tuple[LayerCost, ...]
    """All layers, the most costly first; empty where nothing had to be given back."""


def sensitivity(
    source: Path,
    batches: Sequence[NDArray[np.float32]],
    *,
    method: Method = "percentile",
    runtime: Runtime = "onnxruntime",
) -> list[LayerCost]:
    """Quantize each layer alone and return what that costs, the most costly first.

    Args:
        batches: float32 (n, channels, height, width) each, used for the ranges, and the first
            MOST_IMAGES of them to compare outputs on.

    Raises:
        ExportError: as of `to_int8`.
    """
    model = readable(source, method, runtime)
    ranges = calibrated(model, batches, method, operators(runtime))
    return _costs(model, ranges, runtime, batches)


def _costs(
    model: onnx.ModelProto, ranges: Ranges, runtime: Runtime, batches: Batches
) -> list[LayerCost]:
    feeds = list(whole_batches(model, batches, MOST_IMAGES))
    expected = _outputs(model, feeds)
    kinds = {node.name: node.op_type for node in model.graph.node}
    names = layer_names(model)
    costs = []
    with (
        tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder,
        progress.task("Quantizing each layer alone", total=len(names)) as shown,
    ):
        for name in names:
            path = Path(folder) / "one.onnx"
            write_int8(model, path, ranges, runtime, (), only=[name])
            error = _relative_error(expected, _outputs(read(path), feeds))
            costs.append(LayerCost(name, kinds[name], error))
            shown.advance(info=f"{name}: {error:.1e}")
    # Sorting keeps the order in which layers run where two cost the same.
    return sorted(costs, key=lambda cost: -cost.relative_error)


def _outputs(
    model: onnx.ModelProto, feeds: list[dict[str, NDArray[np.float32]]]
) -> list[NDArray[np.float64]]:
    session = session_of(model)
    return [
        np.concatenate([np.asarray(output, np.float64).ravel() for output in session.run(None, f)])
        for f in feeds
    ]


def _relative_error(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    error = sum(float(((b - a) ** 2).sum()) for a, b in zip(expected, found, strict=True))
    size = sum(float((a**2).sum()) for a in expected)
    if not np.isfinite(error) or (error and not size):
        return float("inf")
    return (error / size) ** 0.5 if error else 0.0


def to_int8_within(
    source: Path,
    target: Path,
    *,
    judge: Callable[[Path], float],
    floor: float,
    batches: Sequence[NDArray[np.float32]],
    method: Method = "percentile",
    runtime: Runtime = "onnxruntime",
    keep: Sequence[str] = (),
) -> Within:
    """Write an int8 version that is good enough, with the fewest layers in fp32.

    Layers go back to fp32 by what they cost alone, the most costly first. That giving back more
    never hurts is taken for granted: the number is found by doubling and halving.

    Args:
        judge: returns how good a file is, higher is better; called a few times, with files that
            exist only during the call.
        floor: the least score.
        keep: nodes that stay in fp32 anyway.

    Raises:
        ExportError: the file in fp32 itself does not reach the floor, or none does that has any
            layer in int8; then `target` is as it was.
    """
    model = readable(source, method, runtime)
    check_names(model, keep)
    ranges = calibrated(model, batches, method, operators(runtime))
    judged: list[tuple[int, float]] = []
    ranked: list[LayerCost] = []
    with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:

        def reaches(count: int) -> bool:
            path, back = Path(folder) / "tried.onnx", [cost.name for cost in ranked[:count]]
            write_int8(model, path, ranges, runtime, (*keep, *back))
            judged.append((count, judge(path)))
            _log.info("%d layers in fp32: %.4g; the floor is %.4g.", *judged[-1], floor)
            return judged[-1][1] >= floor

        count = 0
        costs: list[LayerCost] = []
        if not reaches(0):
            _refuse_unreachable(source, judge(source), floor)
            costs = _costs(model, ranges, runtime, batches)
            ranked = [cost for cost in costs if cost.name not in keep]
            count = _fewest(reaches, len(ranked) - 1)
    if count < 0:
        best = max(score for _, score in judged)
        raise ExportError(
            f"No int8 version of {source} reaches {floor:.4g}: with a single layer in int8 it is "
            f"{judged[-1][1]:.4g}, at best {best:.4g}. Lower the floor, try another method or "
            "more images, or use fp16."
        )
    back = [cost.name for cost in ranked[:count]]
    result = write_int8(model, target, ranges, runtime, (*keep, *back))
    return Within(result, dict(judged)[count], tuple(judged), tuple(costs))


def _refuse_unreachable(source: Path, score: float, floor: float) -> None:
    if not score >= floor:
        raise ExportError(
            f"{source} itself, all in fp32, has {score:.4g}, below the floor of {floor:.4g}: no "
            "int8 version of it can be expected to do better. Lower the floor."
        )


def _fewest(reaches: Callable[[int], bool], most: int) -> int:
    """Return the smallest number from 1 to `most` that reaches; -1: not even `most` does.

    Zero is known not to.
    """
    low, high = 0, 1
    while high < most and not reaches(high):
        low, high = high, high * 2
    if high >= most:
        if most < 1 or not reaches(most):
            return -1
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high
