"""One page that compares runs: a table, Pareto plots, and what is not comparable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prune2deploy.errors import RecipeError
from prune2deploy.report.html.charts import COLOUR, SERIES, Chart, Table, chart, plain_axes
from prune2deploy.report.html.contents import RunContents, named
from prune2deploy.report.html.page import render
from prune2deploy.report.html.verdict import accuracy_interval
from prune2deploy.report.numbers import count_text, milliseconds, percent_change, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osv^DPX"


@dataclass(frozen=True)
class Spot:
    """A run in a plot. number: of its row in the table. before: of its original."""

    number: int
    method: str
    cost: float
    gain: float
    before: tuple[float, float]


def compare_page(runs: Sequence[RunContents]) -> str:
    """The page, for two runs or more.

    Raises:
        RecipeError: they are judged by different metrics.
    """
    metric = _common_metric(runs)
    devices = _devices(runs)
    methods = list(dict.fromkeys(run.metrics.pruning.method for run in runs))
    return render(
        "compare.html",
        title=f"{len(runs)} runs compared",
        runs=runs,
        table=_table(runs, devices),
        over_seeds=_over_seeds(runs),
        warnings=[*accuracy_warnings(runs), *latency_warnings(runs)],
        charts=_charts(runs, devices, methods, metric),
    )


def _devices(runs: Sequence[RunContents]) -> list[str]:
    return list(dict.fromkeys(one["device"] for run in runs for one in run.metrics.latency))


def _common_metric(runs: Sequence[RunContents]) -> str:
    first = runs[0]
    for run in runs:
        if run.metrics.metric != first.metrics.metric:
            raise RecipeError(
                f"{first.folder} is judged by {first.metrics.metric} and {run.folder} by "
                f"{run.metrics.metric}, which cannot be compared. Name runs with one metric."
            )
    return first.metrics.metric


def _table(runs: Sequence[RunContents], devices: Sequence[str]) -> Table:
    metric = runs[0].metrics.metric
    headings = ["run", "no.", "method", "budget", "seed", metric, "change [95 %]"]
    headings += [f"{what} on {device}" for device in devices for what in ("faster", "median")]
    headings += ["ONNX file", "MACs", "parameters", "gates", "precision", "model"]
    rows = tuple(_row(number, run, devices) for number, run in enumerate(runs, 1))
    last = headings.index("gates")
    return Table(tuple(headings), rows, frozenset({1, *range(4, last)}))


def _row(number: int, run: RunContents, devices: Sequence[str]) -> tuple[str, ...]:
    metrics = run.metrics
    before, after = metrics.before, metrics.after
    value = run.judged_metrics[metrics.metric]
    change = f"{value - before.metrics[metrics.metric]:+.2f}"
    interval = accuracy_interval(run)
    if interval is not None:
        change += f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    gates = metrics.gates
    failed = [gate.name for gate in gates if not gate.held]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "held" if gates else "none"
    cells = [run.folder, str(number), metrics.pruning.method, _budget(run), str(metrics.seed)]
    cells += [f"{value:.2f}", change]
    for device in devices:
        cells += _timed(run, device)
    cells += [
        f"{size_text(run.judged_bytes)} ({percent_change(before.onnx_bytes, run.judged_bytes)})",
        f"{count_text(after.macs)} ({percent_change(before.macs, after.macs)})",
        f"{count_text(after.params)} ({percent_change(before.params, after.params)})",
    ]
    return (*cells, verdict, metrics.gated_precision, str(metrics.model.get("source")))


def _budget(run: RunContents) -> str:
    return ", ".join(f"{key}: {value}" for key, value in run.metrics.pruning.budget.items())


def _timed(run: RunContents, device: str) -> list[str]:
    measured = named(run.metrics.latency, "device", device)
    if measured is None:
        return ["not measured", ""]
    new = named(measured["latencies"], "name", run.judged)
    faster = named(measured["speedups"], "other", run.judged)
    if new is None or faster is None:
        return ["not measured", ""]
    mark = " tainted" if measured["tainted"] else ""
    speed = f"{faster['ratio']:.2f}× [{faster['low']:.2f}, {faster['high']:.2f}]"
    return [speed + mark, milliseconds(new["median_ms"], new["median_ci95_ms"]) + mark]


def _over_seeds(runs: Sequence[RunContents]) -> Table | None:
    """Mean and spread where the same was run with several seeds."""
    alike: dict[tuple[str, ...], list[RunContents]] = {}
    for run in runs:
        metrics = run.metrics
        key = str(metrics.model.get("source")), metrics.pruning.method, _budget(run)
        alike.setdefault((*key, metrics.gated_precision), []).append(run)
    rows = []
    for (*names, precision), some in alike.items():
        seeds = {run.metrics.seed for run in some}
        if len(seeds) < 2:
            continue
        values = [run.judged_metrics[run.metrics.metric] for run in some]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1))
        span = f"{min(values):.2f} to {max(values):.2f}"
        shown = f"{mean:.2f} ± {spread:.2f}"
        rows.append((*names, precision, str(len(values)), shown, span))
    if not rows:
        return None
    metric = runs[0].metrics.metric
    headings = ("model", "method", "budget", "precision", "runs", f"{metric}, mean ± std", "range")
    return Table(headings, tuple(rows), frozenset({4, 5, 6}))


def accuracy_warnings(runs: Sequence[RunContents]) -> list[str]:
    """Why figures on test images may not be compared."""
    found = []
    data = {str(run.metrics.data.get("fingerprint") or run.metrics.data) for run in runs}
    if len(data) > 1:
        found.append("The runs were judged on different data: their accuracies are not comparable.")
    originals = {(run.metrics.before.macs, run.metrics.before.params) for run in runs}
    weights = {str(run.metrics.before.metrics) for run in runs}
    if len(originals) > 1:
        found.append("The runs started from different networks.")
    elif len(weights) > 1:
        found.append(
            "The runs started from different weights of the same network: look at the changes, "
            "not at the accuracies alone."
        )
    return found


def latency_warnings(runs: Sequence[RunContents]) -> list[str]:
    """Why latencies may not be compared."""
    found = []
    devices = _devices(runs)
    everywhere = [d for d in devices if all(named(r.metrics.latency, "device", d) for r in runs)]
    if devices and not everywhere:
        found.append(
            "No device measured all runs: latencies and speed-ups of different devices are not "
            "comparable."
        )
    for device in devices:
        measured = [
            (run, one) for run in runs if (one := named(run.metrics.latency, "device", device))
        ]
        for what, of in (
            ("on different machines", _machine),
            ("under different conditions", _conditions),
        ):
            kinds = list(dict.fromkeys(of(one) for _, one in measured))
            if len(kinds) > 1:
                found.append(
                    f"'{device}' measured {what} ({'; '.join(kinds)}): neither its latencies nor "
                    "its speed-ups are comparable."
                )
        days = sorted({_day(run, one) for run, one in measured})
        if len(days) > 1:
            found.append(
                f"The latencies on {device} were measured on different days ({', '.join(days)}): "
                "compare the speed-ups, each measured beside its own original, and not the "
                "milliseconds."
            )
        tainted = [run.folder for run, one in measured if one["tainted"]]
        if tainted:
            found.append(f"The figures on {device} of {', '.join(tainted)} are tainted.")
    return found


def _machine(measured: Any) -> str:
    machine = measured["setup"].get("machine") or {}
    names = [machine.get(key) for key in ("cpu_model", "board", "architecture")]
    return ", ".join(str(name) for name in names if name) or "unknown"


def _conditions(measured: Any) -> str:
    versions = measured["setup"].get("versions") or {}
    runtime = next((f"{k} {v}" for k, v in versions.items() if k not in ("python", "numpy")), "")
    batch = measured["latencies"][0]["batch"]
    return f"{runtime}, {measured['options'].get('threads')} thread(s), batch {batch}"


def _day(run: RunContents, measured: Any) -> str:
    """The day of a measurement; where its own file is not there, that of the end of the run."""
    return (run.measured.get(measured["device"]) or run.metrics.created)[:10]


def _charts(
    runs: Sequence[RunContents], devices: Sequence[str], methods: Sequence[str], metric: str
) -> list[Chart]:
    costs: list[tuple[str, list[tuple[float, float] | None]]] = [
        (f"latency on {device}, ms", [_medians(run, device) for run in runs]) for device in devices
    ]
    costs += [
        ("multiply-accumulates, millions", [_macs(run) for run in runs]),
        ("ONNX file, MB", [_megabytes(run) for run in runs]),
    ]
    charts = []
    for axis, pairs in costs:
        spots = []
        for number, (run, pair) in enumerate(zip(runs, pairs, strict=True), 1):
            if pair is not None:
                before = pair[0], run.metrics.before.metrics[metric]
                gain = run.judged_metrics[metric]
                spots.append(Spot(number, run.metrics.pruning.method, pair[1], gain, before))
        if spots:
            charts.append(_plot(spots, axis, metric, methods, runs[0].metrics.higher_is_better))
    return charts


def _macs(run: RunContents) -> tuple[float, float]:
    return run.metrics.before.macs / 1e6, run.metrics.after.macs / 1e6


def _megabytes(run: RunContents) -> tuple[float, float]:
    return run.metrics.before.onnx_bytes / 1e6, run.judged_bytes / 1e6


def _medians(run: RunContents, device: str) -> tuple[float, float] | None:
    measured = named(run.metrics.latency, "device", device)
    new = None if measured is None else named(measured["latencies"], "name", run.judged)
    if measured is None or new is None:
        return None
    pair = measured["latencies"][0]["median_ms"], new["median_ms"]
    return None if None in pair else pair


def front(spots: Sequence[Spot], higher_is_better: bool) -> list[Spot]:
    """Those that no other beats in cost and gain, ascending in cost."""
    sign = 1 if higher_is_better else -1
    found: list[Spot] = []
    for one in sorted(spots, key=lambda one: (one.cost, -sign * one.gain)):
        if not found or sign * one.gain > sign * found[-1].gain:
            found.append(one)
    return found


def _plot(
    spots: Sequence[Spot], axis: str, metric: str, methods: Sequence[str], higher_is_better: bool
) -> Chart:
    best = front(spots, higher_is_better)
    roles = {name: f"series{place % SERIES}" for place, name in enumerate(methods)}

    def draw(figure: Figure, narrow: bool) -> None:
        axes = plain_axes(figure, grid="both")
        for before in dict.fromkeys(one.before for one in spots):
            axes.plot(*before, "D", color=COLOUR["ink"], markersize=7)
        axes.plot(
            [one.cost for one in best],
            [one.gain for one in best],
            color=COLOUR["muted"],
            linewidth=1.5,
        )
        for one in spots:
            # A shape as well as a colour, for those who do not tell the colours apart.
            shape = _MARKERS[methods.index(one.method) % len(_MARKERS)]
            axes.plot(one.cost, one.gain, shape, color=COLOUR[roles[one.method]], markersize=8)
            axes.annotate(str(one.number), (one.cost, one.gain), (6, 4), textcoords="offset points")
        axes.margins(0.12)
        axes.set_xlabel(axis, color=COLOUR["muted"])
        axes.set_ylabel(metric, color=COLOUR["muted"])
        if narrow:
            axes.locator_params(axis="x", nbins=5)

    table = Table(
        ("run", "method", axis, metric, "on the front"),
        tuple(
            (
                str(one.number),
                one.method,
                f"{one.cost:.4g}",
                f"{one.gain:.2f}",
                "yes" if one in best else "no",
            )
            for one in spots
        ),
        frozenset({2, 3}),
    )
    return chart(
        draw,
        f"{metric} against {axis}",
        f"{len(spots)} runs, numbered as in the table, and their originals; the line joins the "
        f"{len(best)} that no other run beats in both.",
        table,
        heights=(330, 300),
        key=(("ink", "original"), *((roles[name], name) for name in methods)),
        note="Numbers are those of the table. The line joins runs that no other beats in both.",
    )
