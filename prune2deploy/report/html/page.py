"""report.html: one file with everything in it, that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prune2deploy.report.html import figures, tables
from prune2deploy.report.html.charts import Chart
from prune2deploy.report.html.contents import RunContents
from prune2deploy.report.html.verdict import accuracy_interval, verdict
from prune2deploy.report.not_faster import not_faster
from prune2deploy.report.saturation import saturating
from prune2deploy.report.svg import clean
from prune2deploy.report.tables import conditions, gate_findings

_WORTH_A_BAR = 0.1
"""Of the slowest layer's time; quicker layers are not drawn."""

Sections = list[tuple[str, str]]
"""(id, heading) of the sections of a page, in order."""


@cache
def _templates() -> Environment:
    # Everything that comes from a model, a recipe or a label is escaped; only what charts.py made
    # (and escaped) is marked as safe.
    return Environment(
        loader=PackageLoader("prune2deploy.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill in a template. Whatever a page shows, its policy allows no script and no request."""
    environment = _templates()
    style = environment.get_template("style.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Safe: it is our own file, and nothing of a run is in it.
    values |= {"style": Markup(style), "policy": policy}
    return clean(environment.get_template(template).render(values))


def run_page(run: RunContents) -> str:
    """The report of one run. The same contents give the same bytes."""
    metrics = run.metrics
    shown = _shown(run)
    return render(
        "run.html",
        run=run,
        metrics=metrics,
        title=metrics.name,
        verdict=verdict(run),
        conditions=conditions(metrics),
        paired_note=accuracy_interval(run) is not None,
        sections=_sections(run, shown),
        comparison=tables.comparison_table(metrics),
        findings=[gate_findings(gate) for gate in metrics.gates],
        precisions=tables.precisions_table(metrics),
        precision_notes=[*saturating(metrics), *not_faster(metrics)],
        kept=tables.kept_layers(metrics),
        frozen=tables.frozen_table(metrics.pruning.frozen),
        devices=[
            (one["device"], one["tainted"], tables.device_table(run, one))
            for one in metrics.latency
        ],
        facts=tables.facts_table(metrics),
        parity=tables.parity_table(metrics),
        files=tables.files_table(metrics),
        versions=tables.versions_table(metrics),
        snippet=_snippet(run),
        **shown,
    )


def _shown(run: RunContents) -> dict[str, Any]:
    """The charts, by their names in the template."""
    return {
        "latency": [figures.latency_chart(run, one) for one in run.metrics.latency],
        "stages": figures.stages_chart(run),
        "widths": _widths(run),
        "times": _times(run),
        "costs": _costs(run),
        "search": None if run.search is None else figures.search_chart(run.search),
    }


def _sections(run: RunContents, shown: Mapping[str, Any]) -> Sections:
    metrics = run.metrics
    every = [
        ("verdict", "Verdict", True),
        ("latency", "Latency", True),
        ("accuracy", "Accuracy over the run", True),
        ("network", "The network", True),
        ("layers", "Layers", bool(shown["costs"] or shown["times"])),
        ("precisions", "Precisions", bool(metrics.precisions)),
        ("front", "Pareto front", shown["search"] is not None),
        ("frozen", "What was not cut", not metrics.pruning.weights),
        ("devices", "Devices", True),
        ("made", "How it was made", True),
        ("files", "Files", True),
        ("versions", "Versions", True),
        ("recipe", "Recipe", run.recipe is not None),
        ("use", "Run it, repeat it", True),
    ]
    return [(place, heading) for place, heading, there in every if there]


def _widths(run: RunContents) -> Chart | None:
    pruning = run.metrics.pruning
    if pruning.weights:
        rows = [(one.layer, float(one.weights), float(one.kept)) for one in pruning.weights]
        what, unit = "Weights that are not zero", "weights"
        told = f"Before and after, for each of {len(rows)} layers."
    else:
        rows = [(one.group, float(one.channels), float(one.kept)) for one in pruning.groups]
        what, unit = "Widths", "channels"
        total, kept = sum(one[1] for one in rows), sum(one[2] for one in rows)
        told = (
            f"Channels of each of {len(rows)} groups before and after; of {total:.0f} in all, "
            f"{kept:.0f} are kept."
        )
    if not rows:
        return None
    table = tables.widths_table(run.metrics)
    return figures.pairs_chart(rows, what, told, unit=unit, shown=figures.width_text, table=table)


def _costs(run: RunContents) -> list[Chart]:
    layers = run.layers or ()
    macs = [(one.name, one.operator, *one.macs) for one in layers]
    params = [(one.name, one.operator, *one.params) for one in layers]
    return [
        figures.pairs_chart(
            [(name, old, new) for name, _, old, new in rows],
            what,
            f"{unit} of each of {len(rows)} layers before and after.",
            unit=unit,
            shown=figures.short_count,
            table=tables.costs_table(rows),
        )
        for what, unit, rows in (
            ("Multiply-accumulates by layer", "MACs", macs),
            ("Parameters by layer", "parameters", params),
        )
        if rows
    ]


def _times(run: RunContents) -> list[Chart]:
    charts = []
    for device, found in run.layer_times.items():
        least = _WORTH_A_BAR * max(ms or 0 for one in found for ms in one.ms)
        drawn = [one for one in found if max(ms or 0 for ms in one.ms) >= least]
        note = "Under the profiler every layer takes longer: compare layers with each other."
        if len(drawn) < len(found):
            note += f" {len(found) - len(drawn)} quick layers are in the table alone."
        charts.append(
            figures.pairs_chart(
                [(one.name, *one.ms) for one in drawn],
                f"Time by layer on {device}",
                f"Median times of {len(drawn)} layers under the profiler, before and after.",
                unit="ms",
                shown=figures.layer_ms,
                table=tables.times_table(found),
                note=note,
            )
        )
    return charts


def _snippet(run: RunContents) -> str:
    """Python that runs the file which the gates look at."""
    precision = run.metrics.gated_precision
    files = {one.precision: one.file for one in run.metrics.precisions}
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({files.get(precision, 'pruned.onnx')!r})",
    ]
    for one in run.inputs:
        shape = tuple(size if isinstance(size, int) else 1 for size in one.shape)
        lines.append(f"images = np.zeros({shape}, np.{one.dtype})  # yours, normalized")
    fed = ", ".join(f"{one.name!r}: images" for one in run.inputs)
    call = f"session.run(None, {{{fed}}})" if fed else "session.run(None, {session.get_inputs()…})"
    return "\n".join([*lines, f"outputs = {call}"])
