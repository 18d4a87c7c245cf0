"""summary.md: the same table for a pull request, an e-mail or a repository."""

from __future__ import annotations

from prune2deploy.report.metrics import LayerWeights, Metrics
from prune2deploy.report.not_faster import not_faster
from prune2deploy.report.saturation import saturating
from prune2deploy.report.tables import comparison_rows, conditions, doubts, gate_findings
from prune2deploy.search import SearchRecord

_POINTS = 30
"""Points of a front that the summary lists."""


def summary_markdown(metrics: Metrics, search: SearchRecord | None = None) -> str:
    """The run in Markdown.

    search: whose front has the point that was finished.
    """
    lines = [f"# {metrics.name}", "", "| | before | after | change |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in comparison_rows(metrics)]
    lines += ["", conditions(metrics), ""]
    doubted = [*doubts(metrics), *saturating(metrics)]
    if doubted:
        lines += [*(f"- {line}" for line in doubted), ""]
    slow = not_faster(metrics)
    if slow:
        lines += [*(f"- {line}" for line in slow), ""]
    lines += _engines(metrics)
    pruning = metrics.pruning
    asked = ", ".join(f"`{unit}: {share}`" for unit, share in pruning.budget.items())
    kept = pruning.kept_share
    found = (
        f"{kept['weights']:.1%} of the weights of its layers are not zero"
        if pruning.weights
        else f"{kept['macs']:.1%} of the MACs and {kept['params']:.1%} of the parameters are kept"
    )
    lines += [
        f"Pruned with `{pruning.method}`, {f'budget {asked}' if asked else 'searched'}: {found}.",
        "",
    ]
    lines += _layers(pruning.weights)
    lines += _front(search)
    lines += [f"- {note}" for note in pruning.notes]
    lines += [
        f"- {stage.stage}: {metrics.metric} {stage.metrics[metrics.metric]:.2f}"
        for stage in metrics.stages
    ]
    for gate in metrics.gates:
        verdict = "held" if gate.held else "**failed**"
        lines.append(f"- gate `{gate.name}`: {verdict} ({gate_findings(gate)})")
    for name, record in metrics.files.items():
        lines.append(f"- `{name}`: {record.bytes:,} bytes, sha256 `{record.sha256[:16]}…`")
    machine = metrics.machine
    where = f"{machine['cpu']}, {machine['threads']} thread(s) for training and evaluation"
    lines += ["", f"{metrics.created}; {where}.", ""]
    return "\n".join(lines)


def _engines(metrics: Metrics) -> list[str]:
    """A table of TensorRT engines, if there are any."""
    if not metrics.engines:
        return []
    lines = [
        "| engine | TensorRT | precision, share | agrees with its ONNX file | largest difference |",
        "|---|---|---|---:|---:|",
    ]
    for one in metrics.engines:
        share = "not read" if one.share is None else f"{one.share:.0%} of its layers"
        alike = f"not judged: {one.not_judged}"
        worst = ""
        if one.not_judged is None:
            alike = "" if one.agreement is None else f"{one.agreement:.1%} of {one.samples} images"
            worst = f"{one.max_rel_difference:.2g}"
        built = f"{one.version} ({one.gpu or 'portable'})"
        lines.append(f"| `{one.file}` | {built} | {one.precision}, {share} | {alike} | {worst} |")
    return [*lines, ""]


def _front(search: SearchRecord | None) -> list[str]:
    """A table of what a search found."""
    if search is None:
        return []
    where = "validation" if search.judged_on == "val" else "training"
    lines = [
        f"The search tried {len(search.tried)} networks on {search.images} {where} images, without "
        f"training them ([pareto.svg](pareto.svg)). `--point N` finishes another point:",
        "",
        f"| point | {search.metric} before training | cost | found |",
        "|---:|---:|---:|---|",
    ]
    for one in search.front[:_POINTS]:
        found = f"start: {one.start}" if one.start else f"trial {one.trial}"
        lines.append(f"| {one.number} | {one.accuracy:.2f} | {search.amount(one.cost)} | {found} |")
    if len(search.front) > _POINTS:
        lines.append(f"| … | | | {len(search.front) - _POINTS} more in search.json |")
    return [*lines, ""]


def _layers(weights: list[LayerWeights]) -> list[str]:
    """A table of layers whose single weights were zeroed, if there are any."""
    if not weights:
        return []
    rows = [
        f"| `{w.layer}` | {w.weights:,} | {w.kept:,} | {1 - w.kept / w.weights:.1%} |"
        for w in weights
    ]
    return ["| layer | weights | not zero | zeros |", "|---|---:|---:|---:|", *rows, ""]
