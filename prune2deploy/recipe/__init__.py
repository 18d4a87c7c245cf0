"""The recipe: its schema and its loader, where every error names file, line and key."""

from prune2deploy.recipe.json_schema import recipe_schema
from prune2deploy.recipe.loader import dump_recipe, load_recipe, parse_recipe
from prune2deploy.recipe.pruning import TIMES, BudgetSection, PruneSection, ScheduleSection
from prune2deploy.recipe.schema import Recipe
from prune2deploy.recipe.sections import (
    AugmentSection,
    DataSection,
    ExportSection,
    GatesSection,
    Int8Section,
    LogSection,
    ModelSection,
    OnnxSection,
    ProfileSection,
    Statistics,
)
from prune2deploy.recipe.training import DistillSection, EarlyStopSection, TrainSection

__all__ = [
    "TIMES",
    "AugmentSection",
    "BudgetSection",
    "DataSection",
    "DistillSection",
    "EarlyStopSection",
    "ExportSection",
    "GatesSection",
    "Int8Section",
    "LogSection",
    "ModelSection",
    "OnnxSection",
    "ProfileSection",
    "PruneSection",
    "Recipe",
    "ScheduleSection",
    "Statistics",
    "TrainSection",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
]
