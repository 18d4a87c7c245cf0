"""summary.md: the same table for a pull request, an e-mail or a repository."""

from __future__ import annotations

from prune2deploy.report.metrics import Metrics
from prune2deploy.report.tables import comparison_rows, conditions


def summary_markdown(metrics: Metrics) -> str:
    """The run in Markdown."""
    lines = [f"# {metrics.name}", "", "| | before | after | change |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in comparison_rows(metrics)]
    lines += ["", conditions(metrics), ""]
    pruning = metrics.pruning
    unit, share = next(iter(pruning.budget.items()))
    lines += [
        f"Pruned with `{pruning.method}`, budget `{unit}: {share}`: "
        f"{pruning.kept_share['macs']:.1%} of the MACs and "
        f"{pruning.kept_share['params']:.1%} of the parameters are kept.",
        "",
    ]
    lines += [f"- {note}" for note in pruning.notes]
    lines += [
        f"- {stage.stage}: {metrics.metric} {stage.metrics[metrics.metric]:.2f}"
        for stage in metrics.stages
    ]
    for gate in metrics.gates:
        verdict = "held" if gate.held else "**failed**"
        lines.append(f"- gate `{gate.name}`: {verdict}, {gate.found:.4g} (limit {gate.limit:.4g})")
    for name, record in metrics.files.items():
        lines.append(f"- `{name}`: {record.bytes:,} bytes, sha256 `{record.sha256[:16]}…`")
    machine = metrics.machine
    where = f"{machine['cpu']}, {machine['threads']} thread(s) for training and evaluation"
    lines += ["", f"{metrics.created}; {where}.", ""]
    return "\n".join(lines)
