"""The sections `pretrain`, `prune.train` and `finetune`: one training run each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prune2deploy.recipe.fields import Section, Share
from prune2deploy.yaml_text import Key


class DistillSection(Section):
    """Let the network also learn from the outputs of a teacher."""

    teacher: Literal["original"] = Field(
        default="original", alias="from", description="The teacher: the network before pruning."
    )
    temperature: float = Field(
        default=4.0,
        gt=0,
        description="Softens both outputs; higher shows more of the wrong answers.",
    )
    alpha: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Weight of the teacher's term; the labels get the rest.",
    )


class EarlyStopSection(Section):
    """Stop when the validation metric no longer improves; the best weights are kept."""

    patience: int = Field(ge=1, description="Epochs without improvement before stopping.")


class ProcessesSection(Section):
    """Where all trainings of the recipe run, in the words of Lightning Fabric.

    With several devices or nodes `prune2deploy run` starts the other processes itself; `torchrun`
    and `fabric run` start all of them.
    """

    accelerator: str = Field(
        default="auto", description="cpu, cuda or mps; auto: a GPU if there is one."
    )
    devices: Annotated[int, Field(ge=1)] | str = Field(
        default=1, description="Devices per node: how many, their numbers ('0,2'), or auto: all."
    )
    num_nodes: int = Field(default=1, ge=1, description="Machines that train together.")
    strategy: str = Field(
        default="auto", description="How they train together, such as ddp; auto: as it fits."
    )

    @property
    def several(self) -> bool:
        """Whether more than one process may train."""
        return self.num_nodes > 1 or str(self.devices) != "1"


class TrainSection(Section):
    """SGD with momentum."""

    epochs: float = Field(gt=0, description="Passes over the training images; may be a fraction.")
    lr: float = Field(gt=0, description="Highest learning rate of the run.")
    schedule: Literal["cosine", "step", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warmup_epochs: float = Field(
        default=0.0, ge=0, description="Epochs in which the learning rate rises to its highest."
    )
    milestones: tuple[Share, ...] = Field(
        default=(0.5, 0.75),
        description="Shares of the run after which a step schedule multiplies lr by gamma.",
    )
    gamma: float = Field(default=0.1, gt=0, lt=1, description="Factor at each milestone.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    nesterov: bool = Field(default=True, description="Nesterov momentum.")
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 penalty on all weights.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread over all classes."
    )
    distill: DistillSection | None = Field(
        default=None, description="Learn from a teacher too; left out: from the labels only."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware computes in it, otherwise fp32."
    )
    early_stop: EarlyStopSection | None = Field(
        default=None, description="Stop early by the validation metric; needs validation images."
    )
    grad_clip: float | None = Field(
        default=None, gt=0, description="Largest norm of the gradient; left out: no limit."
    )

    def misfits(self) -> list[tuple[Key, str]]:
        """Warm-up, step schedule and momentum."""
        problems: list[tuple[Key, str]] = []
        if self.warmup_epochs >= self.epochs:
            problems.append(
                (
                    ("warmup_epochs",),
                    f"should be shorter than the run of {self.epochs:g} epochs, "
                    f"found {self.warmup_epochs:g}",
                )
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            problems.append((("milestones",), f"should rise, found {list(self.milestones)}"))
        if self.schedule != "step":
            # A value that differs from the default was meant to do something.
            defaults = {name: type(self).model_fields[name].default for name in _STEP_ONLY}
            problems += [
                (
                    (name,),
                    f"is used by 'schedule: step' only, and the schedule is '{self.schedule}'",
                )
                for name in _STEP_ONLY
                if getattr(self, name) != defaults[name]
            ]
        if self.nesterov and self.momentum == 0:
            problems.append(
                (("nesterov",), "needs a momentum above 0; set momentum, or nesterov: false")
            )
        return problems


_STEP_ONLY = ("milestones", "gamma")
