"""Several processes of one run: the first does everything, the others only train with it.

Lightning Fabric starts them with the same command line when the first training begins, or
torchrun starts all of them at once. So the others go through the same stages: of those that are
recorded they read what is on disk, in those that train they take part, for the rest they wait.
They write nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from prune2deploy.errors import TrainingError
from prune2deploy.methods import METHODS
from prune2deploy.pipeline.stages import StageRecord
from prune2deploy.recipe import Recipe

_POLL_S = 0.2


def is_follower() -> bool:
    """Whether this process is not the first of those that train together."""
    rank = os.environ.get("RANK")
    if rank is not None:
        return int(rank) > 0
    return any(int(os.environ.get(name, 0)) > 0 for name in ("LOCAL_RANK", "NODE_RANK"))


def started_from_outside() -> bool:
    """Whether torchrun, or something like it, started all processes at once."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def trains(stage: str, recipe: Recipe) -> bool:
    """Whether all processes take part in a stage."""
    section = recipe.prune
    if stage == "search" or (section.search is not None and stage == "prune"):
        return False  # training for the method is then done by one process
    if stage != "prune":
        return stage in ("pretrain", "finetune")
    between = section.schedule.rounds > 1 and section.schedule.finetune_epochs > 0
    retrained = METHODS[section.method].rounds == "train"
    return section.train is not None or between or retrained


def wait_for(find: Callable[[], StageRecord | None], stage: str) -> StageRecord:
    """Wait until the first process has recorded a stage.

    Raises:
        TrainingError: it ended before it did.
    """
    parent = os.getppid()
    while (record := find()) is None:
        if os.getppid() != parent:
            raise TrainingError(f"The first process ended before the stage '{stage}' was finished.")
        time.sleep(_POLL_S)
    return record
