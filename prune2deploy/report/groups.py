"""The groups of a graph on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prune2deploy.channels import Graph
from prune2deploy.report.network import Network
from prune2deploy.report.numbers import count_text
from prune2deploy.report.palette import Style, group_styles

FEW = 40
"""A model with more groups than this has those that are alike shown in one row."""

_WIDE = 110
"""Columns of a terminal from which the table has all in one line."""

_FIGURES = 38
"""Columns that the table of groups needs beside marks and names."""


def groups_table(graph: Graph, every: bool = False) -> Stack:
    """What can be cut, the groups of coupled channels, and what is frozen and why.

    every: whether each group gets a row of its own, however many there are.
    """
    network = Network(graph)
    parts: list[RenderableType] = [_overview(network)]
    if graph.groups:
        parts += [Text(), _Groups(network, every)]
    parts += _frozen(network)
    parts += [
        Text(f"no rule for {name} (met {times} times): what goes in is frozen", style="bold")
        for name, times in graph.unknown_ops.items()
    ]
    return Stack(*parts)


def _overview(network: Network) -> Text:
    graph = network.graph
    free, channels = network.channels()
    params, macs = graph.cost.params(graph.full), graph.cost.macs(graph.full)
    text = Text()
    text.append(type(graph.model).__name__, style="bold")
    text.append(f": {count_text(params)} parameters, {count_text(macs)} MACs\n")
    share = free / channels if channels else 0.0
    text.append(f"{share:.1%} of the output channels can be cut", style="bold")
    text.append(
        f": {free:,} of {channels:,}, in {_counted(len(graph.groups), 'group')}. Their layers hold "
        f"{network.params_share():.1%} of the parameters and {network.macs_share():.1%} "
        "of the MACs."
    )
    return text


@dataclass
class _Row:
    """Groups that are shown in one row: their numbers, and the name that fits them all."""

    name: str
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Groups:
    """The table of groups; on a narrow terminal, what a group couples stands below its name."""

    network: Network
    every: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        graph, network = self.network.graph, self.network
        together = not self.every and len(graph.groups) > FEW
        rows = _alike(network) if together else _alone(graph)
        wide = options.max_width >= _WIDE
        table = _table("Groups: what is cut together")
        table.add_column("", no_wrap=True)
        table.add_column("group", overflow="fold", ratio=None if wide else 1)
        for heading in ("channels", "params", "MACs"):
            table.add_column(heading, justify="right", no_wrap=True)
        if wide:
            table.add_column("with it", overflow="fold")
        styles = group_styles(network.coupled)
        mark_width = max(len(_mark(row, styles)) for row in rows)
        for row in rows:
            mark, figures, couples = (
                _mark(row, styles),
                _figures(network, row),
                _with_it(network, row),
            )
            if wide:
                table.add_row(mark, Text(row.name), *figures, Text(couples))
            else:
                room = max(options.max_width - _FIGURES - mark_width, 12)
                name = Text(fold(row.name, room))
                name.append_text(Text(f"\n{fold(couples, room)}", style="dim"))
                table.add_row(mark, name, *figures)
        yield table
        yield Text(_NOTE + (_NOTE_ON_ROWS if together else ""), style="dim")


_NOTE = (
    "params, MACs: what would go with all of the group's channels; what lies between two groups "
    "counts for both. '.bn1' stands beside the group's first layer."
)
_NOTE_ON_ROWS = " '4×': so many groups, alike but for numbers in their names; --all lists each."


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold italic", box=box.SIMPLE_HEAD)


def _mark(row: _Row, styles: Sequence[Style]) -> Text:
    mark = Text()
    for number in row.numbers[:3]:
        mark.append("■", style=styles[number].colour)
    mark.append(f" {row.numbers[0] + 1}" if len(row.numbers) == 1 else f" {len(row.numbers)}×")
    return mark


def _figures(network: Network, row: _Row) -> tuple[str, str, str]:
    """Channels, parameters, share of the MACs."""
    graph = network.graph
    gone = [_gone(graph, number) for number in row.numbers]
    total = graph.cost.macs(graph.full)
    return (
        network.size_text(row.numbers[0]),
        count_text(sum(params for params, _ in gone)),
        f"{sum(macs for _, macs in gone) / total:.1%}" if total else "none",
    )


def _alone(graph: Graph) -> list[_Row]:
    return [_Row(group.name, [number]) for number, group in enumerate(graph.groups)]


def _alike(network: Network) -> list[_Row]:
    """One row for groups of one layer whose names differ in numbers only, of equal size."""
    rows: dict[tuple[str, int], _Row] = {}
    for number, group in enumerate(network.graph.groups):
        name = group.name if network.coupled[number] else pattern(group.name)
        rows.setdefault((name, group.size), _Row(name)).numbers.append(number)
    for row in rows.values():
        if len(row.numbers) == 1:
            row.name = network.graph.groups[row.numbers[0]].name
    return list(rows.values())


def _gone(graph: Graph, number: int) -> tuple[int, int]:
    """Parameters and MACs that would go with all of a group's channels."""
    left = graph.full.copy()
    left[number] = 0
    full = graph.full
    return (
        graph.cost.params(full) - graph.cost.params(left),
        graph.cost.macs(full) - graph.cost.macs(left),
    )


def _with_it(network: Network, row: _Row, most: int = 3) -> str:
    """'layer1.0.conv2, layer1.1.conv2, 3 norms, read by 4 layers'."""
    readers = [len(network.readers[number]) for number in row.numbers]
    if len(row.numbers) > 1:
        return f"one layer each, read by {_counted(min(readers), 'layer', max(readers))}"
    number = row.numbers[0]
    near = _neighbourhood(row.name)
    layers = [x.name for x in network.producers[number] if row.name not in (x.name, x.module)]
    norms, parameters = network.norms(number), network.parameters(number)
    texts = [_short(name, near) for name in layers[:most]]
    if len(layers) > most:
        texts[-1] += f" + {len(layers) - most} more"
    for names, what in ((norms, "norm"), (parameters, "parameter")):
        if names:
            texts.append(_short(names[0], near) if len(names) == 1 else _counted(len(names), what))
    if readers == [1]:
        texts.append(f"read by {_short(network.readers[number][0].name, near)}")
    else:
        texts.append(f"read by {_counted(readers[0], 'layer')}")
    return ", ".join(texts)


def _neighbourhood(name: str) -> str:
    """The module around a layer; of a numbered one the module around its list."""
    path, _, leaf = name.rpartition(".")
    if leaf.isdigit():
        path = path.rpartition(".")[0]
    return f"{path}." if path else ""


def _short(name: str, near: str) -> str:
    return f".{name.removeprefix(near)}" if near and name.startswith(near) else name


def _reasons(network: Network) -> dict[str, list[tuple[str, int]]]:
    """What stays, by reason: names of layers and how many of their channels."""
    reasons: dict[str, list[tuple[str, int]]] = {}
    for layer in network.layers:
        for reason in layer.reasons:
            reasons.setdefault(reason, []).append((layer.name, layer.parts[None]))
    listed = {name for layer in network.layers for name in (layer.name, layer.module)}
    for one in network.graph.frozen:
        if one.name not in listed:
            reasons.setdefault(one.reason, []).append((one.name, one.size))
    return reasons


def _frozen(network: Network) -> list[RenderableType]:
    """What stays; the same reason appears once."""
    reasons = _reasons(network)
    parts: list[RenderableType] = []
    if reasons:
        parts += [Text(), Text("Frozen: what stays whole, with its channels", style="bold italic")]
    for reason, layers in reasons.items():
        parts.append(Padding(Text(compact(layers)), (0, 0, 0, 2), expand=False))
        parts.append(Padding(Text(reason, style="dim"), (0, 0, 0, 6), expand=False))
    return parts


def compact(layers: Sequence[tuple[str, int]], most: int = 4) -> str:
    """Names with their channels; those that differ in numbers only are counted."""
    alike: dict[tuple[str, int], list[str]] = {}
    for name, size in layers:
        alike.setdefault((pattern(name), size), []).append(name)
    texts = [
        f"{names[0]} ({size})" if len(names) == 1 else f"{name} ({len(names)} × {size})"
        for (name, size), names in alike.items()
    ]
    if len(texts) > most:
        rest = sum(len(names) for names in [*alike.values()][most:])
        texts = [*texts[:most], f"{rest} more"]
    return ", ".join(texts)


def pattern(name: str) -> str:
    """'layer1.0.conv2' -> 'layer*.*.conv2': the last part keeps its number."""
    path, dot, leaf = name.rpartition(".")
    return re.sub(r"\d+", "*", path) + dot + leaf


def _counted(number: int, what: str, most: int | None = None) -> str:
    """'1 layer', '3 layers', or '3 to 5 layers'."""
    range_ = "" if most in (None, number) else f" to {most}"
    return f"{number}{range_} {what}{'' if number == 1 and not range_ else 's'}"


def fold(text: str, width: int) -> str:
    """Break words longer than `width` behind their dots, so that names stay readable."""
    words = []
    for word in text.split(" "):
        lines = [""]
        for part in re.findall(r"[^.]*\.?", word):
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
        words.append("\n".join(lines) if len(word) > width else word)
    return " ".join(words)
