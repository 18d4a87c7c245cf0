"""What a training run reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One epoch, or the part of it that was trained.

    Args:
        epoch: from 1.
        steps: optimizer steps in it.
        loss: mean over its images, penalties and distillation included.
        lr: learning rate of its last step.
        images_per_s: over all devices, without validation.
        val: the task's figures on the val set, where there is one.
    """

    epoch: int
    steps: int
    loss: float
    lr: float
    images_per_s: float
    val: dict[str, float] | None = None


@dataclass
class History:
    """A training run.

    Attributes:
        precision: what it computed in, fp32 or bf16.
        epochs: one record each.
        seconds: wall time, validation included.
        stopped_early: whether the val metric ended it.
        best_epoch: whose weights the model has, with early stopping; else None.
    """

    precision: str
    epochs: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False
    best_epoch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> History:
        """Read what `as_dict` returned."""
        return History(**{**plain, "epochs": [EpochRecord(**one) for one in plain["epochs"]]})
