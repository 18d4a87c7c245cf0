"""Many runs of one recipe: trained beside each other by Ray, measured one after the other."""

from prune2deploy.sweep.board import Board, Row
from prune2deploy.sweep.run import SweepResult, run_sweep, sweep_folder
from prune2deploy.sweep.summary import SweepSummary, summarize, sweep_markdown

__all__ = [
    "Board",
    "Row",
    "SweepResult",
    "SweepSummary",
    "run_sweep",
    "summarize",
    "sweep_folder",
    "sweep_markdown",
]
