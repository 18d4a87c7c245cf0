"""Search for widths: which networks are tried, by whom they are proposed, and the front they make.

Optuna is imported only where a search begins.
"""

from prune2deploy.search.front import (
    FrontPoint,
    SearchRecord,
    Tried,
    best_within,
    knee,
    pareto,
    read_record,
)
from prune2deploy.search.space import Space
from prune2deploy.search.study import Result, Settings, Trial, open_study, run, trials_of

__all__ = [
    "FrontPoint",
    "Result",
    "SearchRecord",
    "Settings",
    "Space",
    "Trial",
    "Tried",
    "best_within",
    "knee",
    "open_study",
    "pareto",
    "read_record",
    "run",
    "trials_of",
]
