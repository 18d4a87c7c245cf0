"""The charts of one run's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prune2deploy.report.html.charts import (
    COLOUR,
    NARROW,
    TEXT,
    WIDE,
    Chart,
    Table,
    chart,
    plain_axes,
)
from prune2deploy.report.html.contents import RunContents, SearchFront, SearchPoint
from prune2deploy.report.numbers import milliseconds
from prune2deploy.report.proportions import SHARES, share_interval
from prune2deploy.report.svg import CHARACTER, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 90
"""Rows of a chart of layers; the table has them all."""
_BINS = 140
_RIDGE, _STAGE, _PAIR = 74.0, 34.0, 40.0
_AXIS = 30.0
BEFORE_AFTER = (("before", "before"), ("after", "after"))

Pair = tuple[str, float | None, float | None]
"""A row's label, and its value before and after."""


def label(text: str, room: float) -> str:
    """The text in one line of at most this many CSS pixels; of a long name the end is kept."""
    line = " ".join(clean(text).split())
    most = max(int(room / (TEXT * CHARACTER)), 8)
    return line if len(line) <= most else f"…{line[len(line) - most + 1 :]}"


def latency_chart(run: RunContents, measured: dict[str, Any]) -> Chart:
    """How often each time was measured on a device, one row per model."""
    device = measured["device"]
    samples = run.samples.get(device, {})
    latencies = measured["latencies"]
    known = [np.asarray(samples[one["name"]]) for one in latencies if one["name"] in samples]
    # The slowest percent would take the room from all others.
    ends = [float(np.percentile(times, 99)) for times in known]
    ends += [one["p90_ci95_ms"][1] for one in latencies if not known and one["p90_ci95_ms"]]
    ends += [1.25 * (one["median_ms"] or one["mean_ms"]) for one in latencies]
    typical = max(one["median_ms"] or one["mean_ms"] for one in latencies)
    end = 1.04 * min(max(ends), 2 * typical)
    beyond = sum(int((times > end).sum()) for times in known)
    total = sum(len(times) for times in known)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure)
        for row, one in enumerate(latencies):
            _ridge(axes, -float(row), one, samples.get(one["name"]), end, first=row == 0)
        axes.set_xlim(0, end)
        axes.set_ylim(-len(latencies) + 0.72, 0.95)
        axes.set_yticks([])
        axes.set_xlabel("ms per run", color=COLOUR["muted"])
        if narrow:
            axes.locator_params(axis="x", nbins=5)

    note = "The band is the median with its 95 % interval, the dashed line the 90th percentile."
    if not known:
        note = "The single samples are not in the folder, so only medians are drawn. " + note
    elif beyond:
        note += f" {beyond:,} of {total:,} times lie beyond the right edge."
    text = "; ".join(
        f"{one['name']}: median {milliseconds(one['median_ms'], one['median_ci95_ms'])}"
        for one in latencies
    )
    height = _RIDGE * len(latencies) + _AXIS + 14
    return chart(
        draw,
        f"Latency on {device}",
        f"Distributions of the measured times. {text}.",
        _latency_table(latencies),
        heights=(height, height),
        note=note,
    )


def _ridge(
    axes: Axes,
    base: float,
    one: dict[str, Any],
    times: Sequence[float] | None,
    end: float,
    *,
    first: bool,
) -> None:
    """One model: a bar to its median, over it how often each time was measured, and its label."""
    colour = COLOUR["before" if first else "after"]
    median = one["median_ms"] if one["median_ms"] is not None else one["mean_ms"]
    if times is not None:
        counts, edges = np.histogram(times, bins=_BINS, range=(0, end))
        tops = base + 0.52 * counts / max(counts.max(), 1)
        axes.fill_between(
            edges, [base] * len(edges), [*tops, base], step="post", color=colour, linewidth=0
        )
    axes.plot([0, median], [base, base], color=colour, linewidth=2.5)
    interval = one["median_ci95_ms"]
    if interval:
        width = max(interval[1] - interval[0], end / 400)
        axes.barh(
            base - 0.06, width, left=sum(interval) / 2 - width / 2, height=0.12, color=COLOUR["ink"]
        )
    if one["p90_ms"] is not None and one["p90_ms"] <= end:
        axes.plot(
            [one["p90_ms"]] * 2,
            [base, base + 0.52],
            color=COLOUR["ink"],
            linewidth=1,
            linestyle="--",
        )
    # Over the row, where it meets no bar whatever the width of the page.
    text = f"{label(one['name'], 150)}   {milliseconds(one['median_ms'], interval)}"
    axes.text(0, base + 0.62, text, color=COLOUR["ink"], fontsize=TEXT, va="bottom")


def _latency_table(latencies: Sequence[dict[str, Any]]) -> Table:
    """Percentiles, and what else was measured of at least one of the models."""
    more = [
        (words, key, unit)
        for words, key, unit in (
            ("first run", "first_run_ms", "ms"),
            ("load", "load_ms", "ms"),
            ("memory", "model_memory_mb", "MB"),
            ("energy per run", "energy_mj", "mJ"),
            ("above idle", "net_energy_mj", "mJ"),
        )
        if any(one.get(key) is not None for one in latencies)
    ]
    rows = []
    for one in latencies:
        cells = [
            milliseconds(one[f"{name}_ms"], one[f"{name}_ci95_ms"])
            for name in ("median", "p90", "p95", "p99")
        ]
        cells += [f"{one['mean_ms']:.3f} ± {one['std_ms']:.3f} ms", f"{one['samples']:,}"]
        for _, key, unit in more:
            value = one.get(key)
            cells.append("unknown" if value is None else f"{value:.3g} {unit}")
        rows.append((one["name"], *cells))
    headings = ["model", "median", "p90", "p95", "p99", "mean ± std", "samples"]
    headings += [words for words, *_ in more]
    return Table(tuple(headings), tuple(rows), frozenset(range(1, len(headings))))


def stages_chart(run: RunContents) -> Chart:
    """The metric over the stages of the run, and in lower precisions."""
    metrics = run.metrics
    name = metrics.metric
    rows = [(one.stage, one.metrics[name]) for one in metrics.stages]
    rows += [(f"in {one.precision}", one.metrics[name]) for one in metrics.precisions]
    images = run.test_images if name in SHARES else None
    intervals = [
        tuple(100 * end for end in share_interval(value / 100, images)) if images else None
        for _, value in rows
    ]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure)
        places = [-float(row) for row in range(len(rows))]
        axes.plot([value for _, value in rows], places, color=COLOUR["line"], linewidth=2)
        for row, ((_, value), interval) in enumerate(zip(rows, intervals, strict=True)):
            colour = COLOUR["before" if row == 0 else "after"]
            if interval:
                axes.plot(interval, [-row, -row], color=colour, linewidth=2)
            axes.plot([value], [-row], "o", color=colour, markersize=8)
            axes.text(
                value, -row + 0.18, f"{value:.2f}", ha="center", va="bottom", color=COLOUR["ink"]
            )
        axes.set_yticks(places, [label(stage, 90) for stage, _ in rows])
        axes.set_ylim(-len(rows) + 0.5, 0.75)
        axes.margins(x=0.1)
        axes.set_xlabel("top-1 accuracy, %" if name == "top1" else name, color=COLOUR["muted"])
        if narrow:
            axes.locator_params(axis="x", nbins=5)

    told = "; ".join(f"{stage} {value:.2f}" for stage, value in rows)
    shown = ["none" if one is None else f"{one[0]:.2f} to {one[1]:.2f}" for one in intervals]
    table = Table(
        ("stage", name, "95 % interval"),
        tuple((s, f"{v:.2f}", text) for (s, v), text in zip(rows, shown, strict=True)),
        frozenset({1, 2}),
    )
    height = _STAGE * len(rows) + _AXIS + 16
    return chart(
        draw,
        f"{name} over the run",
        f"The metric on the test images after each stage. {told}.",
        table,
        heights=(height, height),
        note=f"Lines are 95 % intervals from {images:,} test images." if images else "",
    )


def pairs_chart(
    rows: Sequence[Pair],
    name: str,
    description: str,
    *,
    unit: str,
    shown: Callable[[float], str],
    table: Table,
    note: str = "",
) -> Chart:
    """Two bars per row, before and after, one below the other."""
    drawn = rows[:MOST_ROWS]
    if len(rows) > len(drawn):
        note = f"The first {len(drawn)} of {len(rows)} rows; the table has all. {note}".strip()
    most = max((value or 0 for _, *pair in drawn for value in pair), default=0) or 1.0

    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure)
        width = NARROW if narrow else WIDE
        for row, (_, old, new) in enumerate(drawn):
            axes.barh(-row + 0.17, old or 0, height=0.3, color=COLOUR["before"])
            axes.barh(-row - 0.17, new or 0, height=0.3, color=COLOUR["after"])
            told = " → ".join("none" if one is None else shown(one) for one in (old, new))
            place = max(old or 0, new or 0) + most * 0.015
            axes.text(place, -row, told, va="center", color=COLOUR["ink"])
        names = [label(text, width * 0.33) for text, *_ in drawn]
        axes.set_yticks([-float(row) for row in range(len(drawn))], names)
        axes.set_ylim(-len(drawn) + 0.4, 0.6)
        # Room for the figures behind the longest bar.
        axes.set_xlim(0, most * (1.75 if narrow else 1.3))
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value) if value <= most else "")
        axes.locator_params(axis="x", nbins=4 if narrow else 6)
        axes.set_xlabel(unit, color=COLOUR["muted"])

    height = (_PAIR - 12) * len(drawn) + _AXIS + 16
    return chart(
        draw,
        name,
        description,
        table,
        heights=(height, height),
        key=BEFORE_AFTER,
        note=note,
    )


def short_count(value: float) -> str:
    """A count in three digits, beside a bar: 590 k, 2.36 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def width_text(value: float) -> str:
    """Channels or weights beside a bar; up to five digits in full."""
    return short_count(value) if value >= 100_000 else f"{value:.0f}"


def layer_ms(value: float) -> str:
    """A layer's time; runtimes tell whole microseconds."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _tick(value: float) -> str:
    return short_count(value) if value >= 1000 else f"{value:g}"


def search_chart(search: SearchFront) -> Chart:
    """What a search tried, and its Pareto front."""
    every = [*search.tried, *search.front, *([search.original] if search.original else [])]
    scale, unit = _scale(search.axis, max((one.cost for one in every), default=1.0))

    def spots(points: Sequence[SearchPoint]) -> tuple[list[float], list[float]]:
        return [one.cost / scale for one in points], [one.accuracy for one in points]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure, grid="both")
        axes.plot(*spots(search.tried), "o", color=COLOUR["before"], markersize=4, linestyle="none")
        axes.plot(*spots(search.front), "-o", color=COLOUR["after"], markersize=6, linewidth=2)
        if search.original is not None:
            axes.plot(*spots([search.original]), "D", color=COLOUR["ink"], markersize=7)
        axes.set_xlabel(unit, color=COLOUR["muted"])
        axes.set_ylabel(search.metric, color=COLOUR["muted"])
        if narrow:
            axes.locator_params(axis="x", nbins=5)

    table = Table(
        ("point", search.metric, unit),
        tuple(
            (one.told or str(number), f"{one.accuracy:.2f}", f"{one.cost / scale:.4g}")
            for number, one in enumerate(search.front, 1)
        ),
        frozenset({1, 2}),
    )
    return chart(
        draw,
        "Networks that the search tried",
        f"{len(search.tried)} networks by {search.metric} and {unit}, and the front of "
        f"{len(search.front)} that no other beats in both.",
        table,
        heights=(330, 300),
        key=(("before", "tried"), ("after", "front"), *_original_key(search)),
        note=search.judged,
    )


def _original_key(search: SearchFront) -> tuple[tuple[str, str], ...]:
    return (("ink", "original"),) if search.original is not None else ()


def _scale(axis: str, most: float) -> tuple[float, str]:
    """What large costs are divided by, and the axis' name with it."""
    if most >= 1e9:
        return 1e9, f"{axis}, 10⁹"
    if most >= 1e6:
        return 1e6, f"{axis}, millions"
    return (1e3, f"{axis}, thousands") if most >= 1e4 else (1.0, axis)
