"""What a run leaves for people and for machines: metrics.json, summary.md, tables."""

from prune2deploy.report.check import CheckReport, check_table
from prune2deploy.report.groups import groups_table
from prune2deploy.report.metrics import (
    EngineFigures,
    FileRecord,
    FrontFigures,
    FrozenChannels,
    GateResult,
    GroupChoice,
    LatencyFailure,
    LayerWeights,
    Metrics,
    NetworkFigures,
    ParityFigures,
    PrecisionFigures,
    Pruning,
    SearchFigures,
    Stage,
)
from prune2deploy.report.pareto import write_front
from prune2deploy.report.picture import write_picture
from prune2deploy.report.summary import summary_markdown
from prune2deploy.report.tables import results_table

__all__ = [
    "CheckReport",
    "EngineFigures",
    "FileRecord",
    "FrontFigures",
    "FrozenChannels",
    "GateResult",
    "GroupChoice",
    "LatencyFailure",
    "LayerWeights",
    "Metrics",
    "NetworkFigures",
    "ParityFigures",
    "PrecisionFigures",
    "Pruning",
    "SearchFigures",
    "Stage",
    "check_table",
    "groups_table",
    "results_table",
    "summary_markdown",
    "write_front",
    "write_picture",
]
