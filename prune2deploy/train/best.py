"""The best weights that a training has seen."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prune2deploy.train.history import EpochRecord
from prune2deploy.train.tasks import Task


class Best:
    """Watches the val metric; keeps the best weights if early stopping is on."""

    def __init__(self, task: Task, patience: int | None) -> None:
        self.task = task
        self.patience = patience
        self.value = 0.0
        self.epoch = 0
        self.weights: dict[str, Any] | None = None

    def see(self, record: EpochRecord, model: nn.Module) -> bool:
        """Take note of an epoch; return whether it is time to stop."""
        if self.patience is None or record.val is None:
            return False
        value = record.val[self.task.metric]
        better = value > self.value if self.task.higher_is_better else value < self.value
        if self.weights is None or better:
            self.value, self.epoch, self.weights = value, record.epoch, weights_of(model)
        return record.epoch - self.epoch >= self.patience


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Return a copy of the model's state."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
