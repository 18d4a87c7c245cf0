"""The stages in order: from a recipe to a folder of results."""

from prune2deploy.pipeline.check import check_recipe, inspect_model
from prune2deploy.pipeline.run import (
    Outlook,
    RunOptions,
    RunResult,
    outlook,
    run_recipe,
    run_until,
)
from prune2deploy.planning.plan import plan

__all__ = [
    "Outlook",
    "RunOptions",
    "RunResult",
    "check_recipe",
    "inspect_model",
    "outlook",
    "plan",
    "run_recipe",
    "run_until",
]
