"""What a sweep found: every run, and means over seeds with their intervals."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from prune2deploy.report import Metrics
from prune2deploy.sweep.board import Row

SEED = "seed"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceFigures(_Record):
    """The pruned network against the original on one device."""

    device: str = Field(description="Its name.")
    median_ms: float | None = Field(description="Median latency of the pruned network.")
    speedup: float = Field(description="Paired speed-up over the original.")
    interval: tuple[float, float] = Field(description="Its 95 % interval, of this measurement.")
    tainted: bool = Field(description="Whether something disturbed the measurement.")


class RunFigures(_Record):
    """One combination."""

    name: str = Field(description="Name of the combination, and of its folder.")
    values: dict[str, Any] = Field(description="What was put in the recipe, by key.")
    state: str = Field(description="finished, not measured (on some device), failed, or stopped.")
    error: str | None = Field(default=None, description="Why it failed.")
    metric: str | None = Field(default=None, description="The metric that gates look at.")
    before: float | None = Field(default=None, description="The metric of the original network.")
    after: float | None = Field(default=None, description="The metric of what is deployed.")
    macs: float | None = Field(default=None, description="Share of MACs kept.")
    params: float | None = Field(default=None, description="Share of parameters kept.")
    devices: list[DeviceFigures] = Field(default=[], description="Latency per device.")
    failed_gates: list[str] = Field(default=[], description="Gates that did not hold.")
    seconds: float = Field(description="That its stages took.")


class Spread(_Record):
    """Several runs' figure."""

    mean: float = Field(description="Mean.")
    deviation: float | None = Field(description="Standard deviation (n - 1); null for one run.")
    interval: tuple[float, float] | None = Field(
        description="95 % interval of the mean by Student's t; null for one run."
    )
    n: int = Field(description="Runs.")


class GroupFigures(_Record):
    """Combinations that differ in the seed only."""

    values: dict[str, Any] = Field(description="Their values, without the seed.")
    runs: list[str] = Field(description="Names of those that have figures.")
    missing: list[str] = Field(description="Names of those that have none.")
    tainted: list[str] = Field(description="Devices on which a measurement is tainted.")
    figures: dict[str, Spread] = Field(
        description="before, after, change, macs, params, and 'speedup DEVICE'."
    )


class SweepSummary(_Record):
    """sweep.json."""

    schema_version: int = Field(default=1, description="Of this document.")
    name: str = Field(description="Name of the sweep.")
    created: str = Field(description="When it ended, ISO 8601 with time zone.")
    groups: list[GroupFigures] = Field(description="One per combination without its seed.")
    runs: list[RunFigures] = Field(description="One per combination.")


def spread(values: Sequence[float]) -> Spread:
    """Mean and its 95 % interval, by Student's t with n - 1 degrees of freedom."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean=mean, deviation=None, interval=None, n=1)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return Spread(mean=mean, deviation=deviation, interval=(mean - half, mean + half), n=n)


def summarize(name: str, rows: Iterable[Row]) -> SweepSummary:
    """Put together what all combinations found."""
    runs = [run_figures(row) for row in rows]
    groups: dict[str, list[RunFigures]] = {}
    for run in runs:
        values = {key: value for key, value in run.values.items() if key != SEED}
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(run)
    return SweepSummary(
        name=name,
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        groups=[_group(members) for members in groups.values()],
        runs=runs,
    )


def run_figures(row: Row) -> RunFigures:
    """The figures of one combination, as far as it has any."""
    metrics = row.metrics
    if metrics is None:
        state = row.state if row.state == "failed" else "stopped"
        return RunFigures(
            name=row.name,
            values=row.combination.values,
            state=state,
            error=row.error,
            seconds=row.seconds,
        )
    return RunFigures(
        name=row.name,
        values=row.combination.values,
        state=row.state,
        error=row.error,
        metric=metrics.metric,
        before=metrics.before.metrics[metrics.metric],
        after=deployed(metrics),
        macs=metrics.pruning.kept_share["macs"],
        params=metrics.pruning.kept_share["params"],
        devices=[device_figures(one, metrics.gated_precision) for one in metrics.latency],
        failed_gates=[gate.name for gate in metrics.gates if not gate.held],
        seconds=math.fsum(metrics.seconds.values()),
    )


def deployed(metrics: Metrics) -> float:
    """The metric of the file that the gates look at."""
    for one in metrics.precisions:
        if one.precision == metrics.gated_precision:
            return one.metrics[metrics.metric]
    return metrics.after.metrics[metrics.metric]


def device_figures(measured: Mapping[str, Any], precision: str) -> DeviceFigures:
    """Latency of the file that the gates look at."""
    model = "pruned" if precision == "fp32" else f"pruned {precision}"
    latency = next(one for one in measured["latencies"] if one["name"] == model)
    faster = next(one for one in measured["speedups"] if one["other"] == model)
    return DeviceFigures(
        device=measured["device"],
        median_ms=latency["median_ms"],
        speedup=faster["ratio"],
        interval=(faster["low"], faster["high"]),
        tainted=bool(measured["tainted"]),
    )


def _group(members: Sequence[RunFigures]) -> GroupFigures:
    whole = [run for run in members if run.after is not None]
    figures: dict[str, list[float]] = {}
    for run in whole:
        assert run.before is not None
        assert run.after is not None
        assert run.macs is not None
        assert run.params is not None
        found = {"before": run.before, "after": run.after, "change": run.after - run.before}
        found |= {"macs": run.macs, "params": run.params}
        found |= {f"speedup {one.device}": one.speedup for one in run.devices}
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
    tainted = {one.device: None for run in whole for one in run.devices if one.tainted}
    return GroupFigures(
        values={key: value for key, value in members[0].values.items() if key != SEED},
        runs=[run.name for run in whole],
        missing=[run.name for run in members if run.after is None],
        tainted=list(tainted),
        figures={name: spread(values) for name, values in figures.items()},
    )


def write_summary(folder: Path, summary: SweepSummary) -> None:
    """Write sweep.json and sweep.md."""
    (folder / "sweep.json").write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "sweep.md").write_text(sweep_markdown(summary), encoding="utf-8")


def sweep_markdown(summary: SweepSummary) -> str:
    """Both tables, and what failed."""
    lines = [f"# {summary.name}", "", "## Over seeds", ""]
    lines += _markdown(*group_table(summary))
    lines += ["", NOTE, "", "## Every run", "", *_markdown(*run_table(summary))]
    failed = [run for run in summary.runs if run.error]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {run.name}: {' '.join((run.error or '').split())}" for run in failed]
    return "\n".join(lines) + "\n"


NOTE = (
    "Mean ± half of its 95 % interval by Student's t over the runs that differ in the seed only; "
    "one run alone has no interval. The change is that of the metric, after less before. Every run "
    "was measured alone, after all training; * is tainted."
)

Table = tuple[list[str], list[list[str]]]


def group_table(summary: SweepSummary) -> Table:
    """Headings and rows: one row per combination without its seed."""
    keys = list(dict.fromkeys(key for group in summary.groups for key in group.values))
    devices = _devices(summary)
    metric = next((run.metric for run in summary.runs if run.metric), "metric")
    figures = ["before", "after", "change", "macs", "params"]
    headings = [*keys, "runs", f"{metric} before", "after", "change", "MACs kept", "params kept"]
    headings += [f"faster on {device}" for device in devices]
    rows = []
    for group in summary.groups:
        total = len(group.runs) + len(group.missing)
        cells = [shown_value(group.values.get(key)) for key in keys]
        cells.append(f"{total}" if not group.missing else f"{len(group.runs)} of {total}")
        for name in figures:
            share = name in ("macs", "params")
            sign = "+" if name == "change" else ""
            cells.append(_spread_text(group.figures.get(name), 100 if share else 1, sign, share))
        for device in devices:
            mark = "*" if device in group.tainted else ""
            text = _spread_text(group.figures.get(f"speedup {device}"))
            cells.append(f"{text}×{mark}" if text else "")
        rows.append(cells)
    return headings, rows


def run_table(summary: SweepSummary) -> Table:
    """Headings and rows: one row per combination."""
    devices = _devices(summary)
    headings = ["run", "state", "before", "after", "MACs kept", "params kept"]
    headings += [f"faster on {device}" for device in devices] + ["failed gates", "seconds"]
    rows = []
    for run in summary.runs:
        cells = [run.name, run.state]
        cells += ["" if one is None else f"{one:.2f}" for one in (run.before, run.after)]
        cells += ["" if one is None else f"{one:.1%}" for one in (run.macs, run.params)]
        measured = {one.device: one for one in run.devices}
        cells += [speedup_text(measured[name]) if name in measured else "" for name in devices]
        rows.append([*cells, ", ".join(run.failed_gates), f"{run.seconds:.0f}"])
    return headings, rows


def speedup_text(one: DeviceFigures) -> str:
    """'1.63× [1.63, 1.64]', with a star if it is tainted."""
    mark = "*" if one.tainted else ""
    return f"{one.speedup:.2f}× [{one.interval[0]:.2f}, {one.interval[1]:.2f}]{mark}"


def shown_value(value: Any) -> str:
    """A value of a recipe in a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown_value(one)}" for key, one in value.items())
    return "" if value is None else str(value)


def _devices(summary: SweepSummary) -> list[str]:
    return list(dict.fromkeys(one.device for run in summary.runs for one in run.devices))


def _spread_text(
    found: Spread | None, factor: float = 1, sign: str = "", share: bool = False
) -> str:
    if found is None:
        return ""
    text = f"{found.mean * factor:{sign}.2f}"
    if found.interval is not None:
        text += f" ± {(found.interval[1] - found.mean) * factor:.2f}"
    return f"{text} %" if share else text


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [list(headings), ["---"] * len(headings), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
