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
    onnx_bytes: int,
    pruned: str = "pruned",
    not_measured: Sequence[str] = (),
    allow_tainted: bool = False,
) -> list[GateResult]:
    """Compare figures with limits. A gate that the recipe does not set is not in the result.

    A speed-up counts with the lower end of its interval and a latency with the upper end
    of its median's: a gate holds only if the measurement shows it. With several devices
    the worst one counts; one that was not measured could be it, so that nothing is shown then,
    and figures that are tainted show nothing either, unless they are allowed.

    Args:
        metric_before, metric_after: on the test images; a drop is in their units.
        latency: per device as in metrics.json, the original first.
        pruned: name of the model in `latency` that the gates look at.
        not_measured: devices that failed.
    """
    results = []
    if gates.max_accuracy_drop is not None:
        drop = metric_before - metric_after if higher_is_better else metric_after - metric_before
        results.append(_at_most("max_accuracy_drop", drop, gates.max_accuracy_drop))
    if not_measured:
        limits = {"min_speedup": gates.min_speedup, "max_latency_ms": gates.max_latency_ms}
        note = f"not measured on {', '.join(not_measured)}"
        results += [
            GateResult(name=name, held=False, found=None, limit=limit, note=note)
            for name, limit in limits.items()
            if limit is not None
        ]
    else:
        results += [
            _doubted(gate, latency, allow_tainted) for gate in _timed(gates, latency, pruned)
        ]
    if gates.max_size_mb is not None:
        results.append(_at_most("max_size_mb", onnx_bytes / 1e6, gates.max_size_mb))
    return results


def _timed(
    gates: GatesSection, latency: Sequence[Mapping[str, Any]], pruned: str
) -> list[GateResult]:
    """The gates on latency, by the figures alone."""
    results = []
    if gates.min_speedup is not None:
        slowest = min(_named(one["speedups"], "other", pruned)["low"] for one in latency)
        results.append(
            GateResult(
                name="min_speedup",
                held=slowest >= gates.min_speedup,
                found=slowest,
                limit=gates.min_speedup,
            )
        )
    if gates.max_latency_ms is not None:
        worst = max(_upper(_named(one["latencies"], "name", pruned)) for one in latency)
        results.append(_at_most("max_latency_ms", worst, gates.max_latency_ms))
    return results


def _named(figures: Sequence[Mapping[str, Any]], key: str, name: str) -> Mapping[str, Any]:
    return next(one for one in figures if one[key] == name)


def _doubted(
    gate: GateResult, latency: Sequence[Mapping[str, Any]], allow_tainted: bool
) -> GateResult:
    """The same gate, not held where a figure is tainted, unless that is allowed."""
    tainted = [
        f"tainted on {one['device']}: {'; '.join(one['tainted'])}"
        for one in latency
        if one["tainted"]
    ]
    if not tainted:
        return gate
    if allow_tainted:
        tainted.append("Allowed by profile.allow_tainted")
    return gate.model_copy(update={"held": gate.held and allow_tainted, "note": ". ".join(tainted)})


def _at_most(name: str, found: float, limit: float) -> GateResult:
    return GateResult(name=name, held=found <= limit, found=found, limit=limit)


def _upper(latency: Mapping[str, Any]) -> float:
    """Upper end of the median's interval; without an interval nothing is shown, so infinity."""
    interval = latency["median_ci95_ms"]
    return float(interval[1]) if interval else float("inf")
