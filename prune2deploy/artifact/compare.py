"""Two runs or artifacts, side by side: is the new one worse?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from prune2deploy.artifact.manifest import MANIFEST, read_manifest
from prune2deploy.artifact.verify import MODEL
from prune2deploy.devices import Devices
from prune2deploy.errors import ExportError
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.report import Metrics

_NOTHING = 0.01
"""A change of the time that is none: the same file against itself may differ by half of it."""

Outcome = Literal["better", "same", "worse", "regression", "undecided"]


@dataclass(frozen=True)
class Tolerance:
    """What may be lost. accuracy: in units of the metric; slowdown, size: shares."""

    accuracy: float = 0.5
    slowdown: float = 0.05
    size: float = 0.02


@dataclass(frozen=True)
class Row:
    """One figure of both. low, high: 95 % interval of the change, where it was measured."""

    what: str
    base: str
    new: str
    change: str
    outcome: Outcome
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All rows; stored: latencies are those that were once measured."""

    rows: tuple[Row, ...]
    stored: bool

    @property
    def regressed(self) -> bool:
        """Whether something is worse than the tolerance allows, surely."""
        return any(row.outcome == "regression" for row in self.rows)

    @property
    def undecided(self) -> bool:
        """Whether something may be."""
        return any(row.outcome == "undecided" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "regressed": self.regressed, "undecided": self.undecided}


@dataclass(frozen=True)
class _Side:
    path: Path
    model: Path
    metric: str
    higher_is_better: bool
    accuracy: float
    costs: dict[str, int]
    latency: Sequence[dict[str, Any]]
    gated: str


def compare(
    base: Path,
    new: Path,
    *,
    on: Sequence[str] = ("local",),
    stored: bool = False,
    tolerance: Tolerance | None = None,
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
) -> Comparison:
    """Compare two run folders or artifacts.

    Args:
        on: devices that both models are measured on now, in turns.
        stored: compare what each measured when it was made, instead: of other days, and so of
            other conditions.

    Raises:
        ExportError: a folder holds neither, their metrics differ, or nothing stored is of one
            device.
        DeviceError: a device cannot measure them.
    """
    allowed = tolerance or Tolerance()
    first, second = _side(base), _side(new)
    if first.metric != second.metric:
        raise ExportError(
            f"{base} is judged by {first.metric}, {new} by {second.metric}. Compare runs of one "
            "task."
        )
    rows = [_accuracy(first, second, allowed), _size(first, second, allowed)]
    rows += [
        _cost(name, first.costs[name], second.costs[name])
        for name in first.costs
        if name in second.costs
    ]
    if stored:
        rows += _stored(first, second, allowed)
    else:
        models = {"base": first.model, "new": second.model}
        for name in on:
            result = profile(models, device=name, options=options, devices=devices)
            faster = result.speedups[0]
            medians = [one.median_ms for one in result.latencies]
            rows.append(_latency(name, medians, (faster.ratio, faster.low, faster.high), allowed))
    return Comparison(tuple(rows), stored)


def _side(path: Path) -> _Side:
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        found = manifest.metrics.get(manifest.precision, manifest.metrics["after"])
        return _Side(
            path,
            path / MODEL,
            manifest.metric,
            manifest.higher_is_better,
            found[manifest.metric],
            manifest.costs,
            _measured(path),
            "pruned" if manifest.precision == "fp32" else f"pruned {manifest.precision}",
        )
    try:
        metrics = Metrics.model_validate_json((path / "metrics.json").read_bytes())
    except FileNotFoundError as err:
        raise ExportError(
            f"{path} holds neither {MANIFEST} nor metrics.json. Name the folder of a finished run "
            "or its dist/NAME."
        ) from err
    except (OSError, ValidationError) as err:
        raise ExportError(f"{path / 'metrics.json'} is damaged, or of another version.") from err
    precision = metrics.gated_precision
    judged = next((one for one in metrics.precisions if one.precision == precision), metrics.after)
    file = "pruned.onnx" if precision == "fp32" else f"pruned.{precision}.onnx"
    return _Side(
        path,
        path / file,
        metrics.metric,
        metrics.higher_is_better,
        judged.metrics[metrics.metric],
        {"parameters": metrics.after.params, "MACs": metrics.after.macs},
        metrics.latency,
        "pruned" if precision == "fp32" else f"pruned {precision}",
    )


def _measured(path: Path) -> Sequence[dict[str, Any]]:

    try:
        found: Sequence[dict[str, Any]] = json.loads((path / "measured.json").read_text())[
            "latency"
        ]
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise ExportError(f"{path / 'measured.json'} is missing or damaged.") from err
    return found


def _accuracy(first: _Side, second: _Side, allowed: Tolerance) -> Row:
    change = second.accuracy - first.accuracy
    lost = -change if first.higher_is_better else change
    outcome: Outcome = "same" if lost == 0 else "better" if lost < 0 else "worse"
    if lost > allowed.accuracy:
        outcome = "regression"
    name = first.metric
    return Row(name, f"{first.accuracy:.2f}", f"{second.accuracy:.2f}", f"{change:+.2f}", outcome)


def _size(first: _Side, second: _Side, allowed: Tolerance) -> Row:
    try:
        sizes = [side.model.stat().st_size for side in (first, second)]
    except OSError as err:
        raise ExportError(f"The model {err.filename} is missing.") from err
    growth = sizes[1] / sizes[0] - 1
    outcome: Outcome = "same" if growth == 0 else "better" if growth < 0 else "worse"
    if growth > allowed.size:
        outcome = "regression"
    texts = [f"{size / 1e6:.3f} MB" for size in sizes]
    return Row("ONNX file", texts[0], texts[1], f"{growth:+.1%}", outcome)


def _cost(name: str, base: int, new: int) -> Row:
    """For information: what counts is the time."""
    outcome: Outcome = "same" if new == base else "better" if new < base else "worse"
    return Row(name, f"{base:,}", f"{new:,}", f"{new / max(base, 1) - 1:+.1%}", outcome)


def _latency(
    device: str,
    medians: Sequence[float],
    faster: tuple[float, float, float],
    allowed: Tolerance,
) -> Row:
    """faster: how many times as fast the new one is, with the interval's ends."""
    ratio, low, high = faster
    limit = 1 / (1 + allowed.slowdown)
    outcome: Outcome
    if high < limit:
        outcome = "regression"
    elif low < limit:
        outcome = "undecided"
    elif low > 1 + _NOTHING:
        outcome = "better"
    else:
        outcome = "worse" if high < 1 - _NOTHING else "same"
    texts = [f"{median:.4g} ms" for median in medians]
    change = f"{ratio:.3f} times as fast [{low:.3f}, {high:.3f}]"
    return Row(f"latency on {device}", texts[0], texts[1], change, outcome, low, high)


def _stored(first: _Side, second: _Side, allowed: Tolerance) -> list[Row]:
    rows = []
    theirs = {one["device"]: one for one in second.latency}
    for one in first.latency:
        other = theirs.get(one["device"])
        if other is None:
            continue
        old, new = _model(one, first.gated), _model(other, second.gated)
        ends = [side["median_ci95_ms"] or [side["median_ms"]] * 2 for side in (old, new)]
        medians = [side["median_ms"] for side in (old, new)]
        faster = (medians[0] / medians[1], ends[0][0] / ends[1][1], ends[0][1] / ends[1][0])
        rows.append(_latency(f"{one['device']} (stored)", medians, faster, allowed))
    if not rows:
        raise ExportError(
            "Nothing stored is of one device in both. Leave --stored out, and both are measured."
        )
    return rows


def _model(measured: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in measured["latencies"] if one["name"] == name)
    return found
