"""GREG-1: small filters are chosen first, then driven to zero by a weight decay that grows.

Paper: Wang, Qin, Zhang, Fu, "Neural Pruning via Growing Regularization", ICLR 2021,
https://arxiv.org/abs/2012.09243.

Before training the share 1 - keep of each layer's filters with the smallest score is chosen,
rounded up, but never all. Each step then adds decay_c * W[c] to the gradient of filter c,
beside the recipe's own weight decay: for chosen filters decay_c grows evenly from 0 to
`ceiling`, and for the share `settle` at the end of the training it stays there; for all others
it is 0. So the network gets used to their absence by and by. score_c = mean of |W[c]|, which is
close to 0 for chosen filters at the end; where several layers produce the same channels
(residual additions) their scores are added, and all are driven to zero.

What becomes small is the filter. Behind a batch norm it is scaled up again, until it is cut; cut
then, what reads it shifts, until the statistics are renewed or the network is trained on. How
many channels go is the budget's affair; give both the same share.

Differs from the paper: it raises the decay by 1e-4 every 5 or 10 steps until it is 1, over tens
of thousands of steps, or stops once chosen filters are 1000 times smaller than others. Here the
length of the training is the recipe's and the raise follows from it, so that the end is reached
in a short one too. The paper leaves the last layer of every residual block whole; here it goes
with its group.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Graph, Role, Slot
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import (
    by_channel,
    filters,
    require_some,
    rows,
    weight_slots,
)


def mean_size(parts: list[Tensor]) -> Tensor:
    """Return the mean of |w| of each filter, added up over layers.

    Args:
        parts: per layer shape (channels, entries).
    """
    return torch.stack([part.abs().mean(dim=1) for part in parts]).sum(dim=0)


def smallest(scores: Tensor, keep: float) -> Tensor:
    """Return which channels are chosen to go, bool: ceil(channels * (1 - keep)), not all.

    Args:
        scores: shape (channels,). Of equal ones the first counts as smaller.
    """
    # 10 * (1 - 0.7) is a little above 3 in floating point.
    count = min(math.ceil(len(scores) * (1 - keep) - 1e-9), len(scores) - 1)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.argsort(stable=True)[:count]] = True
    return chosen


def grown(done: float, settle: float, start: float, ceiling: float) -> float:
    """Return the decay of chosen filters when the share `done` of their time is over."""
    return start + (ceiling - start) * min(1.0, done / (1 - settle))


class GrowingDecay:
    """A weight decay per channel, on the filters of all channels that can go."""

    def __init__(self, graph: Graph) -> None:
        self._model = graph.model
        found = (tuple(weight_slots(graph, group, Role.PRODUCER)) for group in graph.groups)
        self._groups = tuple(slots for slots in found if slots)
        self._decays: tuple[Tensor, ...] = ()

    def chosen(self, keep: float) -> tuple[Tensor, ...]:
        """Per group which channels are smallest now."""
        with torch.no_grad():
            return tuple(smallest(mean_size(self._filters(slots)), keep) for slots in self._groups)

    def set_all(self, decay: float) -> None:
        """Give all channels the same decay."""
        sizes = (len(slots[0].index) for slots in self._groups)
        self._decays = tuple(torch.full((size,), decay) for size in sizes)

    def set_chosen(self, chosen: tuple[Tensor, ...], decay: float, others: float) -> None:
        """Give chosen channels one decay, and the others another."""
        self._decays = tuple(torch.where(which, decay, others) for which in chosen)

    def add(self) -> None:
        """Add decay * weight to the gradients."""
        with torch.no_grad():
            for slots, decays in zip(self._groups, self._decays, strict=True):
                for slot in slots:
                    weight = self._model.get_parameter(slot.tensor)
                    if weight.grad is not None:
                        weight.grad.add_(weight * by_channel(decays, slot, weight, 0.0))

    def _filters(self, slots: tuple[Slot, ...]) -> list[Tensor]:
        return [rows(self._model.get_parameter(slot.tensor), slot) for slot in slots]


def mean_sizes(context: Context, method: str) -> list[Tensor | None]:
    """Score every group by the mean size of its filters' weights."""
    parts = [filters(context, group) for group in context.graph.groups]
    scores = [mean_size(some) if some else None for some in parts]
    return require_some(scores, method, "no layer with weights produces them")


class Greg1Options(MethodOptions):
    """Options of GREG-1."""

    keep: float = Field(
        0.5, gt=0, lt=1, description="Share of each layer's filters that is not driven to zero."
    )
    ceiling: float = Field(1.0, gt=0, description="Weight decay of chosen filters at the end.")
    settle: float = Field(
        0.1, ge=0, lt=1, description="Share of the training, at its end, in which decay stays."
    )


class Greg1(Method[Greg1Options]):
    """Mean size of a filter's weights after training in which small ones decay more and more."""

    name = "greg1"
    summary = "mean of a filter's absolute weights, small ones driven to zero by growing decay"
    source = (
        "Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, ICLR 2021, "
        "https://arxiv.org/abs/2012.09243"
    )
    cost = "one training run"
    options = Greg1Options
    needs_training = True

    _decay: GrowingDecay | None = None
    _chosen: tuple[Tensor, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Choose the filters to drive to zero."""
        self._decay = GrowingDecay(graph)
        self._decay.set_all(0.0)
        self._chosen = self._decay.chosen(self.settings.keep)

    def after_backward(self) -> None:
        """Add the decay of each filter to its gradient."""
        if self._decay is not None:
            self._decay.add()

    def after_step(self, step: Step) -> None:
        """Let the decay grow."""
        if self._decay is not None:
            decay = grown(step.progress, self.settings.settle, 0.0, self.settings.ceiling)
            self._decay.set_chosen(self._chosen, decay, others=0.0)

    def detach(self) -> None:
        """Let go of the model."""
        self._decay = None

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean size of the weights, added up over the layers that produce a group."""
        return mean_sizes(context, self.name)


METHOD = Greg1
