"""The recipe: its schema and its loader, where every error names file, line and key."""

from prune2deploy.recipe.json_schema import recipe_schema
from prune2deploy.recipe.loader import dump_recipe, load_recipe, parse_recipe
from prune2deploy.recipe.pruning import TIMES, BudgetSection, PruneSection, ScheduleSection
from prune2deploy.recipe.schema import Recipe
from prune2deploy.recipe.searching import SearchSection
from prune2deploy.recipe.sections import (
    AugmentSection,
    DataSection,
    EnginesSection,
    ExportSection,
    GatesSection,
    Int8Section,
    LogSection,
    ModelSection,
    OnnxSection,
    ProfileSection,
    Statistics,
)
from prune2deploy.recipe.sweep import Combination, Sweep, SweepSection, load_sweep
from prune2deploy.recipe.training import DistillSection, EarlyStopSection, TrainSection

__all__ = [
    "TIMES",
    "AugmentSection",
    "BudgetSection",
    "Combination",
    "DataSection",
    "DistillSection",
    "EarlyStopSection",
    "EnginesSection",
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
    "SearchSection",
    "Statistics",
    "Sweep",
    "SweepSection",
    "TrainSection",
    "dump_recipe",
    "load_recipe",
    "load_sweep",
    "parse_recipe",
    "recipe_schema",
]
