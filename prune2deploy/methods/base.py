"""The interface of a pruning method: a score, and hooks for what must be learned first.

A method lives in one file: its options, pure functions that follow the paper, and
one subclass of Method that connects them to groups. Hooks do nothing unless a
method overrides them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.channels import Graph, Group, Role, Slot
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


def rows(tensor: Tensor, slot: Slot) -> Tensor:
    """Each channel's entries of one parameter, flattened: shape (channels, entries)."""
    index = slot.index.reshape(-1)
    picked = tensor.movedim(slot.dim, 0)
    if not np.array_equal(index, np.arange(len(picked))):
        picked = picked.index_select(0, torch.from_numpy(index).to(tensor.device))
    return picked.reshape(slot.index.shape[0], -1)


def by_channel(values: Tensor, slot: Slot, tensor: Tensor, fill: float) -> Tensor:
    """Lay a number per channel along the slot's dimension, to multiply the parameter with.

    Args:
        values: shape (channels,). fill: for entries of no channel of the slot.

    Returns:
        What broadcasts with `tensor`, and is of its type.
    """
    laid = tensor.new_full((tensor.shape[slot.dim],), fill)
    index = torch.from_numpy(slot.index).to(tensor.device)
    laid[index] = values.to(tensor)[:, None].expand(index.shape)
    return laid.view([-1 if dim == slot.dim else 1 for dim in range(tensor.dim())])


def filters(context: Context, group: Group) -> list[Tensor]:
    """Weights that produce the group's channels, per layer shape (channels, entries).

    Biases are no filters and are left out.
    """
    found = []
    for slot in group.of_role(Role.PRODUCER):
        tensor = context.tensor(slot.tensor)
        if tensor.dim() > 1:
            found.append(rows(tensor, slot))
    for tensor in found:
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise MethodError(
                f"The weights that produce '{group.name}' hold NaN or inf. Check the checkpoint."
            )
    return found


def joint_norms(parts: Sequence[Tensor]) -> Tensor:
    """L2 norm of each channel's entries in all parts together.

    Args:
        parts: each of shape (channels, entries).

    Returns:
        Shape (channels,), >= 0.
    """
    norms: Tensor = torch.linalg.vector_norm(torch.cat(list(parts), dim=1), dim=1)
    return norms


def relative_norms(context: Context, group: Group) -> Tensor | None:
    """L2 norm of each channel's filters over the mean of the group's, so that layers compare.

    What methods that learn a number per channel go by where nothing was learned.

    Returns:
        Shape (size,), 1 on average, zeros if all filters are; None: no weights make the group.
    """
    parts = filters(context, group)
    if not parts:
        return None
    norms = joint_norms(parts)
    mean = norms.mean()
    return norms / mean if mean > 0 else norms


def learned_scores(
    context: Context, learned: Mapping[str, Tensor], method: str, missing: str
) -> list[Tensor | None]:
    """What a training left per group, by the groups' names; norms of filters if there was none.

    Raises:
        MethodError: a group has another size than in the training, or no group was learned, for
            which `missing` is the reason.
    """
    groups = context.graph.groups
    if not learned:
        norms = [relative_norms(context, group) for group in groups]
        return require_some(norms, method, "no layer with weights produces them")
    scores = [learned.get(group.name) for group in groups]
    for group, found in zip(groups, scores, strict=True):
        if found is not None and len(found) != group.size:
            raise MethodError(
                f"{method} was trained on a network with other channels: '{group.name}' has "
                f"{group.size} and {len(found)} were learned. Train with its hooks again "
                "after each cut (prune.schedule.finetune_epochs above 0)."
            )
    return require_some(scores, method, missing)


def filter_norms(context: Context, method: str) -> list[Tensor | None]:
    """Score every group by the L2 norm of the filters that produce a channel, as one vector.

    Raises:
        MethodError: no group is produced by a layer with weights.
    """
    parts = [filters(context, group) for group in context.graph.groups]
    scores = [joint_norms(some) if some else None for some in parts]
    return require_some(scores, method, "no layer with weights produces them")


def scales(context: Context, group: Group) -> list[Tensor]:
    """Batch-norm scales (gamma) of the group, per layer shape (channels, copies)."""
    return [rows(context.tensor(s.tensor), s) for s in group.of_role(Role.SCALE)]


def scale_parameters(graph: Graph) -> tuple[nn.Parameter, ...]:
    """Batch-norm scales of channels that can go, each once, in the order of the model."""
    names = {s.tensor: None for g in graph.groups for s in g.of_role(Role.SCALE)}
    return tuple(graph.model.get_parameter(name) for name in names)


def weight_slots(graph: Graph, group: Group, *roles: Role) -> list[Slot]:
    """A group's slots of these roles in weights; biases and norms are vectors and left out."""
    slots = [slot for role in roles for slot in group.of_role(role)]
    return [slot for slot in slots if len(graph.shapes[slot.tensor]) > 1]


def mean_scales(context: Context, method: str) -> list[Tensor | None]:
    """Score every group by |gamma|, the mean of its batch norms where it has several.

    Raises:
        MethodError: no group has a batch norm with a scale.
    """
    scores: list[Tensor | None] = []
    for group in context.graph.groups:
        parts = [gamma.abs().mean(dim=1) for gamma in scales(context, group)]
        scores.append(torch.stack(parts).mean(dim=0) if parts else None)
    return require_some(scores, method, "none has a batch norm with a scale")


def training_images(
    context: Context, method: str, count: int, batch_size: int, label: str
) -> Iterator[Tensor]:
    """Batches of training images for a score that looks at what the network makes of them.

    Args:
        label: says what is done with them, for the progress bar.

    Raises:
        MethodError: there are none.
    """
    if context.images is None:
        raise MethodError(
            f"{method} looks at training images and was given no images. Pass some: "
            "in a recipe 'data', in Python plan(..., images=batches)."
        )
    seen = 0
    with progress.task(label, total=count) as shown:
        for batch in context.images(count, batch_size):
            yield batch
            seen += len(batch)
            shown.advance(len(batch))
    if not seen:
        raise MethodError(f"{method} was given no images: the training set is empty.")


def require_some(scores: list[Tensor | None], method: str, missing: str) -> list[Tensor | None]:
    """Return the scores; refuse if not a single group could be judged.

    Raises:
        MethodError: every score is None (and there are groups).
    """
    if scores and all(s is None for s in scores):
        raise MethodError(
            f"{method} can judge none of the {len(scores)} groups: {missing}. "
            "Choose another method, for example l1."
        )
    return scores
