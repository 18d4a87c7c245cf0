"""Gates: what the recipe demands of the result, checked last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune2deploy.recipe import GatesSection
from prune2deploy.report import GateResult


def check_gates(
    gates: GatesSection,
    *,
    metric_before: float,
    metric_after: float,
    higher_is_better: bool,
    latency: Sequence[Mapping[str, Any]],
    missing: Sequence[str] = (),
    allow_tainted: bool = False,
    onnx_bytes: int,
) -> list[GateResult]:
    """Compare figures with limits. A gate that the recipe does not set is not in the result.

    A speed-up counts with the lower end of its interval and a latency with the upper end
    of its median's: a gate holds only if the measurement shows it. With several devices
    the worst one counts. A gate on the latency fails where a device is missing, and where a
    measurement was disturbed unless that is allowed.

    Args:
        metric_before, metric_after: on the test images; a drop is in their units.
        latency: per device as in metrics.json, the original first, the pruned second.
        missing: devices that could not be measured on.
        allow_tainted: of the recipe.
    """
    results = []
    doubt = _doubt(latency, missing, allow_tainted)
    if gates.max_accuracy_drop is not None:
        drop = metric_before - metric_after if higher_is_better else metric_after - metric_before
        results.append(_at_most("max_accuracy_drop", drop, gates.max_accuracy_drop))
    if gates.min_speedup is not None:
        slowest = min((one["speedups"][0]["low"] for one in latency), default=None)
        held = slowest is not None and slowest >= gates.min_speedup
        results.append(_measured("min_speedup", held, slowest, gates.min_speedup, doubt))
    if gates.max_latency_ms is not None:
        worst = max((_upper(one["latencies"][1]) for one in latency), default=None)
        held = worst is not None and worst <= gates.max_latency_ms
        results.append(_measured("max_latency_ms", held, worst, gates.max_latency_ms, doubt))
    if gates.max_size_mb is not None:
        results.append(_at_most("max_size_mb", onnx_bytes / 1e6, gates.max_size_mb))
    return results


def _doubt(
    latency: Sequence[Mapping[str, Any]], missing: Sequence[str], allow_tainted: bool
) -> str | None:
    """Why no figure of these measurements can show that a gate holds; None if they can."""
    doubts = [f"{name} was not measured" for name in missing]
    if not allow_tainted:
        doubts += [
            f"tainted on {one['device']}: {reason}"
            for one in latency
            for reason in one.get("tainted", ())
        ]
    return "; ".join(doubts) or None


def _measured(
    name: str, held: bool, found: float | None, limit: float, doubt: str | None
) -> GateResult:
    return GateResult(name=name, held=held and doubt is None, found=found, limit=limit, note=doubt)


def _at_most(name: str, found: float, limit: float) -> GateResult:
    return GateResult(name=name, held=found <= limit, found=found, limit=limit)


def _upper(latency: Mapping[str, Any]) -> float:
    """Upper end of the median's interval; without an interval nothing is shown, so infinity."""
    interval = latency["median_ci95_ms"]
    return float(interval[1]) if interval else float("inf")
