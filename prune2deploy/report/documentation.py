"""docs/metrics.md, made from the schema: `python -m prune2deploy.report.documentation`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from prune2deploy.report import metrics

RECORDS: tuple[type[BaseModel], ...] = (
    metrics.Metrics,
    metrics.Stage,
    metrics.NetworkFigures,
    metrics.ParityFigures,
    metrics.PrecisionFigures,
    metrics.Pruning,
    metrics.GroupChoice,
    metrics.LayerWeights,
    metrics.FrozenChannels,
    metrics.LatencyFailure,
    metrics.GateResult,
    metrics.FileRecord,
)


def documentation() -> str:
    """The schema as Markdown: one table per record."""
    parts = ["# metrics.json\n", "Made from `prune2deploy/report/metrics.py`; do not edit.\n"]
    for record in RECORDS:
        summary = (record.__doc__ or "").strip()
        parts.append(f"## {record.__name__}\n\n{summary}\n\n| key | type | what |\n|---|---|---|")
        for name, field in record.model_fields.items():
            kind = str(record.__annotations__[name]).replace("|", "\\|")
            parts.append(f"| `{name}` | `{kind}` | {field.description} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    Path("docs/metrics.md").write_text(documentation(), encoding="utf-8")
