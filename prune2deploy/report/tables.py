"""What a run looks like on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from prune2deploy.report.metrics import GateResult, Metrics, PrecisionFigures
from prune2deploy.report.not_faster import not_faster
from prune2deploy.report.numbers import count_text, milliseconds, percent_change, size_text
from prune2deploy.report.saturation import saturating

Row = tuple[str, str, str, str]

# What a task calls its figures, in words; a name that is not here is shown as it is.
_IN_WORDS = {"top1": "accuracy (top-1), %", "top5": "accuracy (top-5), %", "loss": "cross entropy"}


def comparison_rows(metrics: Metrics) -> list[Row]:
    """What changed: (figure, before, after, change), the same in the table and in summary.md."""
    before, after = metrics.before, metrics.after
    rows: list[Row] = []
    # The metric that counts comes first.
    for name in sorted(before.metrics, key=lambda name: name != metrics.metric):
        old, new = before.metrics[name], after.metrics[name]
        shown = _IN_WORDS.get(name, name)
        rows.append((shown, f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}"))
    rows += [
        _counted("parameters", before.params, after.params),
        _counted("MACs", before.macs, after.macs),
        *_weight_rows(metrics),
        (
            "ONNX file",
            size_text(before.onnx_bytes),
            size_text(after.onnx_bytes),
            percent_change(before.onnx_bytes, after.onnx_bytes),
        ),
    ]
    for measured in metrics.latency:
        rows += _latency_rows(measured)
    for one in metrics.precisions:
        rows += _precision_rows(metrics, one)
    return rows


def _precision_rows(metrics: Metrics, one: PrecisionFigures) -> list[Row]:
    """The same network in another precision, beside the original in fp32."""
    name, before = metrics.metric, metrics.before
    old, new = before.metrics[name], one.metrics[name]
    rows = [
        (
            f"{one.precision}: {_IN_WORDS.get(name, name)}",
            f"{old:.2f}",
            f"{new:.2f}",
            f"{new - old:+.2f}",
        ),
        (
            f"{one.precision}: ONNX file",
            size_text(before.onnx_bytes),
            size_text(one.onnx_bytes),
            percent_change(before.onnx_bytes, one.onnx_bytes),
        ),
    ]
    if one.without_training is not None:
        untrained = one.without_training[name]
        change = f"{untrained - old:+.2f}"
        what = f"{one.precision} without its training: {_IN_WORDS.get(name, name)}"
        rows.append((what, f"{old:.2f}", f"{untrained:.2f}", change))
    for measured in metrics.latency:
        model = f"pruned {one.precision}"
        place = [found["name"] for found in measured["latencies"]].index(model)
        what, was, now, change = _latency_rows(measured, place)[0]
        rows.append((f"{one.precision}: {what}", was, now, change))
    return rows


def _weight_rows(metrics: Metrics) -> list[Row]:
    layers = metrics.pruning.weights
    if not layers:
        return []
    total, kept = sum(w.weights for w in layers), sum(w.kept for w in layers)
    return [_counted("weights that may be zero, not zero", total, kept)]


def _counted(name: str, old: int, new: int) -> Row:
    return name, count_text(old), count_text(new), percent_change(old, new)


def _latency_rows(measured: dict[str, Any], place: int = 1) -> list[Row]:
    old, new = measured["latencies"][0], measured["latencies"][place]
    faster = measured["speedups"][place - 1]
    device = measured["device"]
    # Behind every figure: each may be copied for itself.
    mark = " tainted" if measured["tainted"] else ""
    speed = f"{faster['ratio']:.2f}× faster [{faster['low']:.2f}, {faster['high']:.2f}]"
    rows = [
        (
            f"latency on {device}, median",
            milliseconds(old["median_ms"], old["median_ci95_ms"]) + mark,
            milliseconds(new["median_ms"], new["median_ci95_ms"]) + mark,
            speed + mark,
        )
    ]
    if old["p90_ms"] is not None and new["p90_ms"] is not None:
        rows.append(
            (
                f"latency on {device}, p90",
                milliseconds(old["p90_ms"], old["p90_ci95_ms"]) + mark,
                milliseconds(new["p90_ms"], new["p90_ci95_ms"]) + mark,
                f"{old['p90_ms'] / new['p90_ms']:.2f}×{mark}",
            )
        )
    return rows


def doubts(metrics: Metrics) -> list[str]:
    """Why figures are tainted, and where there are none: one line per device."""
    lines = [
        f"latency on {one['device']} is tainted, after {one['attempts']} attempt(s): "
        + "; ".join(one["tainted"])
        for one in metrics.latency
        if one["tainted"]
    ]
    # The rest of a message is what a program on the device said; metrics.json has it.
    lines += [
        f"latency on {one.device} was not measured: {one.message.splitlines()[0]}"
        for one in metrics.latency_failures
    ]
    return lines


def gate_findings(gate: GateResult) -> str:
    """What was found, the limit, and what else made the verdict."""
    parts = [] if gate.found is None else [f"found {gate.found:.4g}"]
    parts.append(f"limit {gate.limit:.4g}")
    return ", ".join(parts) + (f"; {gate.note}" if gate.note else "")


def results_table(metrics: Metrics) -> Stack:
    """Before and after, the gates, and under which conditions the latency was measured."""
    table = Table(title=Text(metrics.name), title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for row in comparison_rows(metrics):
        table.add_row(*map(Text, row))
    parts: list[Any] = [table, Text(conditions(metrics), style="dim")]
    parts += [Text(line, style="yellow") for line in (*doubts(metrics), *saturating(metrics))]
    parts += [Text(line) for line in not_faster(metrics)]
    for note in metrics.pruning.notes:
        parts.append(Text(f"note: {note}"))
    for gate in metrics.gates:
        verdict = "held" if gate.held else "FAILED"
        style = "green" if gate.held else "bold red"
        parts.append(Text(f"gate {gate.name}: {verdict} ({gate_findings(gate)})", style=style))
    return Stack(*parts)


def conditions(metrics: Metrics) -> str:
    """One line on what the latency figures mean."""
    if not metrics.latency:
        return "Latency was not measured."
    threads = {one["device"]: f"{one['options']['threads']} thread(s)" for one in metrics.latency}
    if len(set(threads.values())) == 1:
        shown = next(iter(threads.values()))
    else:
        shown = ", ".join(f"{count} on {device}" for device, count in threads.items())
    batch = metrics.latency[0]["latencies"][0]["batch"]
    return (
        f"Latency: ONNX Runtime, {shown}, batch {batch}, both models "
        "interleaved; brackets are 95 % intervals, the speed-up is paired by block."
    )
