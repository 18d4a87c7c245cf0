"""What a run, a graph or a check looks like on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group as Stack
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from prune2deploy.report.metrics import Metrics
from prune2deploy.report.numbers import count_text, milliseconds, percent_change, size_text

if TYPE_CHECKING:
    from prune2deploy.channels import Graph

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
        (
            "ONNX file",
            size_text(before.onnx_bytes),
            size_text(after.onnx_bytes),
            percent_change(before.onnx_bytes, after.onnx_bytes),
        ),
    ]
    for measured in metrics.latency:
        rows += _latency_rows(measured)
    return rows


def _counted(name: str, old: int, new: int) -> Row:
    return name, count_text(old), count_text(new), percent_change(old, new)


def _latency_rows(measured: dict[str, Any]) -> list[Row]:
    old, new = measured["latencies"][:2]
    faster = measured["speedups"][0]
    device = measured["device"]
    speed = f"{faster['ratio']:.2f}× faster [{faster['low']:.2f}, {faster['high']:.2f}]"
    rows = [
        (
            f"latency on {device}, median",
            milliseconds(old["median_ms"], old["median_ci95_ms"]),
            milliseconds(new["median_ms"], new["median_ci95_ms"]),
            speed,
        )
    ]
    if old["p90_ms"] is not None and new["p90_ms"] is not None:
        rows.append(
            (
                f"latency on {device}, p90",
                milliseconds(old["p90_ms"], old["p90_ci95_ms"]),
                milliseconds(new["p90_ms"], new["p90_ci95_ms"]),
                f"{old['p90_ms'] / new['p90_ms']:.2f}×",
            )
        )
    return rows


def results_table(metrics: Metrics) -> Stack:
    """Before and after, the gates, and under which conditions the latency was measured."""
    table = Table(title=escape(metrics.name), title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for row in comparison_rows(metrics):
        table.add_row(*map(escape, row))
    parts: list[Any] = [table, Text(conditions(metrics), style="dim")]
    for note in metrics.pruning.notes:
        parts.append(Text(f"note: {note}"))
    for gate in metrics.gates:
        verdict = "held" if gate.held else "FAILED"
        style = "green" if gate.held else "bold red"
        line = f"gate {gate.name}: {verdict} (found {gate.found:.4g}, limit {gate.limit:.4g})"
        parts.append(Text(line, style=style))
    return Stack(*parts)


def conditions(metrics: Metrics) -> str:
    """One line on what the latency figures mean."""
    if not metrics.latency:
        return "Latency was not measured."
    options = metrics.latency[0]["options"]
    batch = metrics.latency[0]["latencies"][0]["batch"]
    return (
        f"Latency: ONNX Runtime, {options['threads']} thread(s), batch {batch}, both models "
        "interleaved; brackets are 95 % intervals, the speed-up is paired by block."
    )


def groups_table(graph: Graph) -> Stack:
    """The coupled groups of a model, their share of the MACs, and what is frozen and why."""
    full = graph.full
    total = graph.cost.macs(full)
    table = Table(title="Groups of coupled channels", title_justify="left")
    table.add_column("group")
    table.add_column("channels", justify="right")
    table.add_column("of all MACs", justify="right")
    table.add_column("layers")
    for number, group in enumerate(graph.groups):
        gone = full.copy()
        gone[number] = 0
        share = 1 - graph.cost.macs(gone) / total if total else 0.0
        table.add_row(
            escape(group.name), str(group.size), f"{share:.1%}", escape(_shortened(group.layers))
        )
    parts: list[Any] = [
        table,
        Text(
            "A group's share of the MACs is what would go with all of its channels; layers "
            "between two groups count for both.",
            style="dim",
        ),
    ]
    if graph.frozen:
        stuck = Table(title="Frozen", title_justify="left")
        stuck.add_column("layer")
        stuck.add_column("channels", justify="right")
        stuck.add_column("why")
        for one in graph.frozen:
            stuck.add_row(escape(one.name), str(one.size), escape(one.reason))
        parts.append(stuck)
    for name, times in graph.unknown_ops.items():
        parts.append(Text(f"no rule for {name} (met {times} times): what goes in is frozen"))
    parts.append(
        Text(f"{count_text(total)} MACs, {count_text(graph.cost.params(full))} parameters")
    )
    return Stack(*parts)


def _shortened(names: Sequence[str], most: int = 6) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])}, … ({len(names)} in all)"
