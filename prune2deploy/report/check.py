"""What `check` found, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from prune2deploy.channels import Graph, Plan
from prune2deploy.report.metrics import LayerWeights
from prune2deploy.report.numbers import count_text, percent_change


@dataclass(frozen=True)
class CheckReport:
    """What a recipe would work on.

    images: per split. output: what the model returns for a batch of two.
    plan: what the budget does with scores from filter weights; the recipe's own method
        will choose other channels, under the same budget and widths.
    macs, params: before and after that plan.
    layers: instead of that plan, for methods that zero single weights: what stays of each
        layer by magnitude.
    """

    name: str
    source: str
    method: str
    classes: Sequence[str] | None
    images: Mapping[str, int]
    output: str
    graph: Graph
    plan: Plan
    macs: tuple[int, int]
    params: tuple[int, int]
    layers: Sequence[LayerWeights] = ()


def check_table(report: CheckReport) -> Stack:
    """The facts, the costs before and after, and the groups with their widths."""
    facts = Table(title=Text(report.name), title_justify="left", show_header=False)
    facts.add_column()
    facts.add_column()
    images = ", ".join(f"{split} {count}" for split, count in report.images.items() if count)
    facts.add_row("model", Text(f"{report.source}, returns {report.output}"))
    facts.add_row("images", images)
    if report.classes is not None:
        facts.add_row("classes", Text(_named(report.classes)))
    if report.layers:
        return Stack(facts, *_weights(report))
    for name, (old, new) in (("MACs", report.macs), ("parameters", report.params)):
        change = percent_change(old, new)
        facts.add_row(name, f"{count_text(old)} → about {count_text(new)} ({change})")
    frozen = sum(f.size for f in report.graph.frozen)
    free = int(report.graph.full.sum())
    facts.add_row("channels", f"{free} in {len(report.graph.groups)} groups, {frozen} frozen")
    widths = Table(title="Widths", title_justify="left")
    for heading in ("group", "channels", "kept"):
        widths.add_column(heading, justify="left" if heading == "group" else "right")
    for choice in report.plan.choices:
        widths.add_row(Text(choice.group), str(choice.channels), str(choice.kept))
    parts: list[Any] = [facts, widths]
    if report.method != "l1":
        text = f"Widths are those of filter norms; {report.method} will choose its own."
        parts.append(Text(text, style="dim"))
    parts += [Text(f"note: {note}") for note in report.plan.notes]
    parts += [Text(f"frozen: {f.name}, {f.size} channels: {f.reason}") for f in report.graph.frozen]
    return Stack(*parts)


def _weights(report: CheckReport) -> list[Any]:
    table = Table(title="Weights", title_justify="left")
    for heading in ("layer", "weights", "not zero"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for one in report.layers:
        table.add_row(Text(one.layer), f"{one.weights:,}", f"{one.kept:,}")
    total, kept = sum(w.weights for w in report.layers), sum(w.kept for w in report.layers)
    table.add_row("all", f"{total:,}", f"{kept:,}")
    text = f"Numbers are those of magnitudes now; {report.method} will choose its own."
    return [table, Text(text, style="dim")]


def _named(classes: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(classes[:most])
    return f"{len(classes)}: {shown}{', …' if len(classes) > most else ''}"
