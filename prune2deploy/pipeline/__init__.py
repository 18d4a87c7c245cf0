"""The stages in order: from a recipe to a folder of results."""

from prune2deploy.pipeline.check import check_recipe, inspect_model
from prune2deploy.pipeline.planning import plan
from prune2deploy.pipeline.run import RunResult, run_recipe

__all__ = ["RunResult", "check_recipe", "inspect_model", "plan", "run_recipe"]
