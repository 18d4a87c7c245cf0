"""Training, evaluation, and what a network is for (its task)."""

from __future__ import annotations

from prune2deploy.train.checkpoint import Checkpoint
from prune2deploy.train.evaluation import evaluate, recalibrate_batchnorm
from prune2deploy.train.history import EpochRecord, History
from prune2deploy.train.listening import epochs_told_to, tell_epoch
from prune2deploy.train.loop import fit
from prune2deploy.train.precision import cpu_bf16_features, resolve_precision
from prune2deploy.train.settings import Distillation, Hooks, TrainSettings
from prune2deploy.train.tasks import TASKS, Classification, Task, distillation_loss, load_task

__all__ = [
    "TASKS",
    "Checkpoint",
    "Classification",
    "Distillation",
    "EpochRecord",
    "History",
    "Hooks",
    "Task",
    "TrainSettings",
    "cpu_bf16_features",
    "distillation_loss",
    "epochs_told_to",
    "evaluate",
    "fit",
    "load_task",
    "recalibrate_batchnorm",
    "resolve_precision",
    "tell_epoch",
]
