"""What int8 costs layer by layer, and giving the costliest layers back until accuracy holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prune2deploy import progress
from prune2deploy.errors import ExportError
from prune2deploy.export.onnx import write_whole
from prune2deploy.export.parity import OnnxModel
from prune2deploy.export.precision.activations import Images
from prune2deploy.export.precision.calibration import (
    DEFAULT_PERCENTILE,
    Calibration,
    Method,
    calibrate,
)
from prune2deploy.export.precision.comparison import deviation
from prune2deploy.export.precision.graphs import load_graph, nodes_named, require_layers
from prune2deploy.export.precision.quantize import (
    QuantizedResult,
    Runtime,
    alone,
    to_int8,
    write_int8,
)

_SAMPLES = 64

#: The quality of a file, higher is better, as its accuracy on validation images.
Judge = Callable[[Path], float]


@dataclass(frozen=True)
class LayerCost:
    """What one layer in int8 does to the outputs, all others in fp32."""

    layer: str
    op: str
    rms_rel_diff: float
    """Root of the summed squared differences of the outputs, relative to the outputs."""


@dataclass(frozen=True)
class HeldResult:
    """An int8 file that is good enough."""

    quantized: QuantizedResult
    quality: float
    """What the judge said of the file."""
    full_quality: float
    """What it said with all layers in int8."""
    given_back: list[LayerCost]
    """The layers that stayed fp32 for it, costliest first."""
    evaluations: int
    """How often the judge was asked."""


def sensitivity(
    source: Path,
    batches: Iterable[Images],
    *,
    calibration: Calibration,
    samples: int = _SAMPLES,
    runtime: Runtime = "onnxruntime",
) -> list[LayerCost]:
    """Return what each layer costs, costliest first.

    Each layer in turn is quantised alone, with the input that it reads, and the outputs
    are compared with those of the fp32 file. That is one file per layer, and no labels.

    Args:
        batches: float32 (n, channels, height, width); the first `samples` images are
            used, and kept in memory.
        calibration: from `calibrate`.
        runtime: see `to_int8`.

    Raises:
        ExportError: as of `to_int8`.
    """
    proto = load_graph(source)
    layers = require_layers(proto, source)
    images = _first(batches, samples)
    size = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with OnnxModel(source) as model:
        pairs = [(chunk, model.predict(chunk)) for chunk in images.split(size)]
    costs = []
    with (
        tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder,
        progress.task("Quantising layer by layer", len(layers)) as shown,
    ):
        path = Path(folder) / "alone.onnx"
        for layer in layers:
            write_int8(proto, path, calibration, alone(proto, layer), runtime)
            cost = deviation(path, pairs, agreement=None).rms_rel_diff
            costs.append(LayerCost(layer.name, layer.op, cost))
            shown.advance(info=layer.name)
    return sorted(costs, key=lambda cost: -cost.rms_rel_diff)


def _first(batches: Iterable[Images], samples: int) -> Tensor:
    taken: list[Tensor] = []
    missing = samples
    for batch in batches:
        taken.append(torch.as_tensor(batch)[:missing].float())
        missing -= len(taken[-1])
        if missing <= 0:
            break
    if not taken:
        raise ExportError("There are no images to compare on. Give at least one batch.")
    return torch.cat(taken)


def to_int8_within(
    source: Path,
    target: Path,
    *,
    judge: Judge,
    floor: float,
    batches: Iterable[Images],
    method: Method = "minmax",
    percentile: float = DEFAULT_PERCENTILE,
    keep: Collection[str] = (),
    runtime: Runtime = "onnxruntime",
) -> HeldResult:
    """Quantise as many layers as the floor allows.

    First all of them. If that is not good enough, the costliest 1, 2, 4, 8, … go back to
    fp32 until it is, and bisection finds how few of them do. The judge is asked about
    2 log2(layers) times at most.

    Args:
        target: written only if the floor holds.
        judge: returns the quality of a file that it may run but not keep; higher is better.
        floor: the lowest quality allowed.
        batches: training images, read once.
        method, percentile, keep, runtime: see `to_int8`.

    Raises:
        ExportError: int8 cannot hold the floor, with what it reaches; or as of `to_int8`.
    """
    proto = load_graph(source)
    nodes = {layer.name: layer.node for layer in require_layers(proto, source)}
    always = nodes_named(proto, keep)
    first: list[Tensor] = []
    calibration = calibrate(source, _copying(batches, first), method, percentile=percentile)
    ranking: list[LayerCost] = []
    asked: dict[int, float] = {}
    results: dict[int, QuantizedResult] = {}
    with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:
        tried, best = Path(folder) / "tried.onnx", Path(folder) / "best.onnx"

        def holds(count: int) -> bool:
            given_back = [cost.layer for cost in ranking[:count]]
            results[count] = to_int8(
                source, tried, calibration=calibration, keep=[*keep, *given_back], runtime=runtime
            )
            asked[count] = judge(tried)
            good = asked[count] >= floor
            if good:
                # Every file that is good enough has fewer layers in fp32 than the one before.
                os.replace(tried, best)
            return good

        count: int | None = 0
        if not holds(0):
            costs = sensitivity(source, first, calibration=calibration, runtime=runtime)
            ranking += [cost for cost in costs if nodes[cost.layer] not in always]
            count = _fewest(holds, len(ranking) - 1)
        if count is None:
            raise _cannot_hold(floor, judge(source), asked, ranking)
        write_whole(target, best.read_bytes())
    return HeldResult(
        replace(results[count], path=target), asked[count], asked[0], ranking[:count], len(asked)
    )


def _fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest count from 1 to most that holds, if more never hold less; else None."""
    failed, count = 0, 1
    while count <= most and not holds(count):
        if count == most:
            return None
        failed, count = count, min(2 * count, most)
    if count > most:
        return None
    while count - failed > 1:
        middle = (failed + count) // 2
        if holds(middle):
            count = middle
        else:
            failed = middle
    return count


def _cannot_hold(
    floor: float, original: float, asked: Mapping[int, float], ranking: Sequence[LayerCost]
) -> ExportError:
    if original < floor:
        return ExportError(
            f"The fp32 file itself reaches {original:.4g}, below the floor of {floor:.4g}, so int8 "
            "need not. Lower the floor, or train further."
        )
    most = max(asked)
    with_one = f", and {asked[most]:.4g} with {most} layers back in fp32" if most else ""
    costliest = ", ".join(f"{c.layer} ({c.rms_rel_diff:.2g})" for c in ranking[:3])
    return ExportError(
        f"int8 cannot hold {floor:.4g}: with all {len(ranking)} layers in int8 the file reaches "
        f"{asked[0]:.4g}{with_one}; in fp32 it reaches {original:.4g}. Costliest layers: "
        f"{costliest}. Lower the floor, use fp16, or try another calibration method."
    )


def _copying(batches: Iterable[Images], first: list[Tensor]) -> Iterable[Images]:
    """Pass batches on, and keep the first images for the sensitivities."""
    missing = _SAMPLES
    for batch in batches:
        if missing > 0:
            first.append(torch.as_tensor(batch)[:missing].clone())
            missing -= len(first[-1])
        yield batch
