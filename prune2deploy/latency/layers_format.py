"""Times per layer as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prune2deploy.latency.format import escaped

if TYPE_CHECKING:
    from rich.table import Table

    from prune2deploy.latency.layers import Layer, LayersResult, LayerTime

ROWS = 20
# Some more are shown rather than summed up.
_TOLERATED = 25
_TIMES = 10  # more is no matter of per cent
_MISSING = 0.1  # of a run, that the nodes' medians do not add up to


def format_layers(result: LayersResult, *, every: bool = False) -> tuple[Table | str, ...]:
    """Return a table of the layers in order of execution, and what is to be said about it.

    every: all layers; otherwise, of many, those with most time and one row for the rest.
    """
    from rich.table import Table

    models = result.models
    table = Table(title=escaped(f"{result.device}: {result.options.threads} thread(s), by layer"))
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    table.add_column("channels", justify="right")
    for one in models:
        table.add_column(escaped(f"{one.name} ms (share)"), justify="right")
    for one in models[1:]:
        against = f" {one.name}" if len(models) > 2 else ""
        table.add_column(escaped(f"change{against}"), justify="right")

    def add(name: str, operator: str, channels: str, times: Sequence[float | None]) -> None:
        shares = [
            "-" if ms is None else f"{ms:.3f} ({_percent(ms, model.nodes_ms)})"
            for ms, model in zip(times, models, strict=True)
        ]
        changes = [_change(times[0], after) for after in times[1:]]
        table.add_row(*map(escaped, (name, operator, channels, *shares, *changes)))

    shown = most_time(result.layers, None if every else ROWS)
    for layer in shown:
        add(layer.name, layer.operator, _channels(layer.times), _medians(layer))
    rest = [layer for layer in result.layers if layer not in shown]
    if rest:
        add(f"{len(rest)} other layers", "", "", _summed(rest, len(models)))
    if result.added:
        table.add_section()
    for layer in result.added:
        add("added by the runtime", _counted(layer), "", _medians(layer))
    table.add_section()
    add("all of these", "", "", [one.nodes_ms for one in models])
    add("outside of them", "", "", [one.outside_ms for one in models])
    return (table, *_notes(result))


def most_time(layers: Sequence[Layer], count: int | None) -> list[Layer]:
    """Return the layers with most time in any model, in the order they had."""
    if count is None or len(layers) <= max(count, _TOLERATED):
        return list(layers)

    def longest(layer: Layer) -> float:
        return max(ms for ms in _medians(layer) if ms is not None)

    chosen = sorted(range(len(layers)), key=lambda place: -longest(layers[place]))[:count]
    return [layers[place] for place in sorted(chosen)]


def _medians(layer: Layer) -> list[float | None]:
    return [None if one is None else one.median_ms for one in layer.times]


def _summed(layers: Sequence[Layer], models: int) -> list[float | None]:
    columns = [[_medians(layer)[model] for layer in layers] for model in range(models)]
    return [math.fsum(ms for ms in column if ms is not None) for column in columns]


def _counted(layer: Layer) -> str:
    """How often it was added, in each model."""
    counts = [0 if one is None else len(one.nodes) for one in layer.times]
    text = " → ".join(map(str, counts)) if len(set(counts)) > 1 else str(counts[0])
    return f"{layer.operator} ×{text}"


def _channels(times: Sequence[LayerTime | None]) -> str:
    texts = []
    for one in times:
        if one is None or one.channels is None:
            texts.append("-")
        elif one.run_channels in (None, one.channels):
            texts.append(str(one.channels))
        else:
            texts.append(f"{one.channels} ({one.run_channels})")
    return texts[0] if len(set(texts)) == 1 else " → ".join(texts)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == 0:
        return "-"
    ratio = after / before
    return f"×{ratio:.1f}" if ratio >= _TIMES else f"{100 * (ratio - 1):+.0f} %"


def _notes(result: LayersResult) -> list[str]:
    slowed = [
        f"{one.name} {one.plain_ms:.4g} → {one.profiled_ms:.4g} ms "
        f"({100 * (one.profiled_ms / one.plain_ms - 1):+.1f} %)"
        for one in result.models
    ]
    notes = [
        "These times compare layers; they are no latencies, and the models did not take turns. "
        "For those, leave --layers out.",
        f"Whole runs without and with the profiler: {'; '.join(slowed)}.",
    ]
    times = [time for layer in result.layers for time in layer.times if time is not None]
    padded = [time for time in times if time.run_channels not in (None, time.channels)]
    if padded:
        one_padded = padded[0]
        notes.append(
            f"{one_padded.channels} ({one_padded.run_channels}): the file has "
            f"{one_padded.channels} channels, the runtime computes {one_padded.run_channels}."
        )
    for one in result.models:
        if one.nodes_ms + one.outside_ms < (1 - _MISSING) * one.profiled_ms:
            notes.append(
                f"{one.name}: its layers' medians add up to {one.nodes_ms:.4g} ms of a run's "
                f"{one.profiled_ms:.4g} ms. Runs were often interrupted; measure on a quieter "
                "machine."
            )
    return notes
