"""What a training run is told, and what it reports: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from prune2deploy.errors import TrainingError
from prune2deploy.methods.base import Step


class Hooks(Protocol):
    """What a pruning method does during training; `fit` calls these and knows nothing more."""

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """Return parameters that `after_step` moves itself."""

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """Return what is minimised in place of the loss of this step."""

    def extra_loss(self) -> Tensor | None:
        """Return a penalty that is added to the loss of this step, or None."""

    def after_backward(self) -> None:
        """Edit gradients, before they are clipped."""

    def after_step(self, step: Step) -> None:
        """Edit weights, after the optimizer's step."""


@dataclass(frozen=True)
class Distillation:
    """Learn from a teacher's outputs as well as from the targets.

    Args:
        temperature: divides both outputs before the softmax; higher is softer.
        alpha: weight of the teacher's part; the targets have 1 - alpha.
    """

    temperature: float = 4.0
    alpha: float = 0.9


@dataclass(frozen=True)
class TrainSettings:
    """One run of SGD.

    Weight decay acts on every parameter alike, batch norm and biases included, as
    in the papers whose numbers we compare with.

    Args:
        epochs: passes over the training images; fractions are allowed.
        lr: highest learning rate.
        batch_size: images per step, over all devices together.
        schedule: cosine falls to 0; step multiplies by gamma at each milestone.
        warmup_epochs: epochs in which the rate rises in a straight line from 0 to `lr`.
        milestones: shares of the run, in (0, 1).
        gamma: see schedule.
        momentum: of SGD.
        nesterov: look ahead; needs momentum.
        weight_decay: added to the gradient as weight_decay * weight.
        label_smoothing: share of the target that is spread over all classes.
        distill: None: learn from the targets alone.
        precision: bf16 is autocast, weights stay float32; auto takes it where the
            processor computes in it.
        early_stop_patience: epochs without a better val metric after which training
            stops and the best weights come back; None: never.
        grad_clip: largest norm of the whole gradient.
        first_step: steps of the run that count as done, for a run that goes on from there.
        accelerator, devices, num_nodes, strategy: passed to Lightning Fabric.
    """

    epochs: float
    lr: float
    batch_size: int = 128
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    distill: Distillation | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    early_stop_patience: int | None = None
    grad_clip: float | None = None
    first_step: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            TrainingError: names every such value and what was expected.
        """
        distill = self.distill or Distillation()
        checks = {
            "epochs above 0": self.epochs > 0,
            "lr above 0": self.lr > 0,
            "batch_size of at least 1": self.batch_size >= 1,
            "schedule cosine, step or constant": self.schedule in ("cosine", "step", "constant"),
            "warmup_epochs from 0 to less than epochs": 0 <= self.warmup_epochs < self.epochs,
            "milestones between 0 and 1": all(0 < m < 1 for m in self.milestones),
            "gamma in (0, 1]": 0 < self.gamma <= 1,
            "momentum in [0, 1)": 0 <= self.momentum < 1,
            "nesterov only with momentum": self.momentum > 0 or not self.nesterov,
            "weight_decay of at least 0": self.weight_decay >= 0,
            "label_smoothing in [0, 1)": 0 <= self.label_smoothing < 1,
            "distill temperature above 0": distill.temperature > 0,
            "distill alpha in [0, 1]": 0 <= distill.alpha <= 1,
            "precision auto, fp32 or bf16": self.precision in ("auto", "fp32", "bf16"),
            "early_stop_patience of at least 1": self.early_stop_patience is None
            or self.early_stop_patience >= 1,
            "grad_clip above 0": self.grad_clip is None or self.grad_clip > 0,
            "first_step of at least 0": self.first_step >= 0,
        }
        wrong = [expected for expected, holds in checks.items() if not holds]
        if wrong:
            values = ", ".join(f"{name.split()[0]} {self._value(name)}" for name in wrong)
            raise TrainingError(
                f"Training settings cannot be used: found {values}; expected {'; '.join(wrong)}. "
                "Correct them."
            )

    def _value(self, expectation: str) -> object:
        name = expectation.split()[0]
        return self.distill if name == "distill" else getattr(self, name)
