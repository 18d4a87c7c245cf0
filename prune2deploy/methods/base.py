"""The interface of a pruning method: a score, and hooks for what must be learned first.

A method lives in one file: its options, pure functions that follow the paper, and
one subclass of Method that connects them to groups. Hooks do nothing unless a
method overrides them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.channels.blocks import Block
from prune2deploy.errors import MethodError

Normalisation = Literal["none", "mean", "max", "l2", "rank"]
"""How a group's scores are made comparable with those of other groups."""

Cost = Literal["seconds", "minutes", "one training run", "several training runs"]

Granularity = Literal["channel", "weight"]
Unit = Literal["macs", "params", "channels", "latency_ms", "speedup", "weights", "pattern"]


class MethodOptions(BaseModel):
    """Base of a method's options; as it stands, for a method that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = TypeVar("Options", bound=MethodOptions)
Images = Callable[[int, int], Iterable[Tensor]]
"""images(count, batch_size): batches of normalised training images, NCHW float32."""
Losses = Callable[[nn.Module, int, int], Iterable[Tensor]]
"""losses(model, count, batch_size): the training loss of each batch, with its graph."""

Judge = Callable[[nn.Module], float]
"""judge(model): how well it does its task, higher is better."""
Scores = np.typing.NDArray[np.float64]
Counts = np.typing.NDArray[np.int64]
IndexTable = np.typing.NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """What a method that distributes a budget itself can choose from.

    allowed: per group the counts it may keep, descending, the full one first.
    cost: total cost of counts per group. target: what it may be at most.
    full: cost of the original.
    """

    allowed: Sequence[Sequence[int]]
    cost: Callable[[Counts], int]
    target: float
    full: int


@dataclass(frozen=True)
class Context:
    """What a score may look at.

    graph: the groups, and the model as it is now.
    images: training images for scores that need data, or None.
    losses: training losses of a model, for scores that need gradients, or None.
    judge: says how good a model is on images that are not for testing, for methods that try
        networks out; or None.
    """

    graph: Graph
    images: Images | None = None
    losses: Losses | None = None
    judge: Judge | None = None

    @property
    def model(self) -> nn.Module:
        """The model to score; not to be modified."""
        return self.graph.model

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by name, detached, float32 unless it is float64."""
        found = self.model.get_parameter(name) if _is_parameter(self.model, name) else None
        value = (found if found is not None else self.model.get_buffer(name)).detach()
        return value if value.dtype == torch.float64 else value.float()


def _is_parameter(model: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf in model.get_submodule(owner)._parameters


@dataclass(frozen=True)
class Step:
    """Where a training stands after a step of its optimizer.

    lr: learning rate of the step. number: of the step, from 1. total: steps of the training.
    ends_epoch: whether the next step begins another pass over the data, or none follows.
    """

    lr: float
    number: int
    total: int
    ends_epoch: bool

    @property
    def progress(self) -> float:
        """Share of the training that is done, above 0, 1 after the last step."""
        return self.number / self.total


class Method(ABC, Generic[Options]):
    """One published method.

    name, summary, source: for people. cost: how long it takes, in kind.
    options: the schema of what the recipe may set.
    needs_training: scores mean something only after training with the hooks.
    needs_data: the score looks at training images.
    needs_losses: the score looks at the gradient of the training loss.
    needs_judge: networks are tried out.
    by_place: channels that are alike are told apart by their place, so that scores do not go
        along when channels change places.
    attach_changes: attaching changes what the network returns in eval mode.
    detach_changes: so does detaching.
    may_train: has hooks for a training, and means something without one as well.
    normalisation: default for comparing groups with one another.
    granularity: what it removes; those of single weights are WeightMethods (weights.py).
    budgets: the units of a budget that it can keep.
    rounds: what trains between the rounds of an iterative schedule, the settings of
        `finetune` or those of `prune.train`; None: it knows no rounds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[Cost] = "seconds"
    options: ClassVar[type[MethodOptions]] = MethodOptions
    needs_training: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    needs_losses: ClassVar[bool] = False
    needs_judge: ClassVar[bool] = False
    by_place: ClassVar[bool] = False
    may_train: ClassVar[bool] = False
    attach_changes: ClassVar[bool] = False
    detach_changes: ClassVar[bool] = False
    normalisation: ClassVar[Normalisation] = "mean"
    granularity: ClassVar[Granularity] = "channel"
    budgets: ClassVar[tuple[Unit, ...]] = ("macs", "params", "channels", "latency_ms", "speedup")
    rounds: ClassVar[Literal["finetune", "train"] | None] = "finetune"

    def __init__(self, settings: Options) -> None:
        self.settings = settings

    @abstractmethod
    def score(self, context: Context) -> list[Tensor | None]:
        """Score every group of context.graph, in order.

        Returns:
            Per group shape (size,), float, on any device; higher means keep. None for
            a group the method cannot judge, which then stays whole.

        Raises:
            MethodError: no group can be judged, or what is needed is missing.
        """

    def attach(self, graph: Graph) -> None:
        """Training with the hooks is about to begin on graph.model."""

    def detach(self) -> None:
        """That training is over: leave the plain model behind, without gates and module hooks."""

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that `after_step` moves itself; the training's optimizer does not."""
        return ()

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """Replace the loss of a step: the task's on what the model made of these images."""
        return loss

    def extra_loss(self) -> Tensor | None:
        """A penalty to add to the loss of every step."""
        return None

    def after_backward(self) -> None:
        """Edit gradients, before clipping and the optimizer's step."""

    def after_step(self, step: Step) -> None:
        """Edit weights after the optimizer's step."""

    @property
    def removes_blocks(self) -> bool:
        """Whether whole residual blocks go, judged by `score_blocks`, instead of channels."""
        return False

    def score_blocks(self, context: Context, blocks: Sequence[Block]) -> Tensor:
        """Score residual blocks, shape (blocks,); higher means keep."""
        raise MethodError(f"{self.name} does not judge whole blocks.")

    def allocate(
        self, context: Context, scores: Sequence[Scores | None], choice: Allocation
    ) -> Counts | None:
        """How many channels each group keeps, for a method that looks for it itself.

        Args:
            scores: per group shape (size,), made comparable; None: it stays whole.
            choice: the counts that are allowed, and what they cost.

        Returns:
            Counts per group, of those allowed; None: the budget decides by the scores.
        """
        return None

    def before_cut(self, context: Context, kept: Sequence[IndexTable]) -> None:
        """Edit the weights of context.model, now that it is known which channels stay.

        Args:
            kept: per group the channels that stay, ascending.
        """
