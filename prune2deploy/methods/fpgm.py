"""FPGM: a filter near the geometric median of its layer can be replaced by the others.

Paper: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional
Neural Networks Acceleration", CVPR 2019, https://arxiv.org/abs/1811.00250.

score_c = sum over the layer's filters j of the Euclidean distance |W[c] - W[j]|. The filters
with the smallest sums lie nearest to the point with the smallest sum of all, the geometric
median. A small filter far from the others is kept, where a norm would remove it.

norm_keep: the paper also mixes both rules. Below 1, the filters with the smallest L2 norms,
the share 1 - norm_keep of each layer, come before all others, whatever their distance.

Where several layers produce the same channels (residual additions) their sums are added.

Without prune.train a trained network is judged once. With it, filters are chosen during a
training as in the paper, where they are after every epoch, and after the last, the
floor(channels * (1 - keep)) of each layer that come first are set to zero, and their gradient is
zero until the next choice. A filter of zeros scores 0 at the end, so that these are what the
budget removes first; give it the same share. The paper keeps 0.6 in 100 epochs on ImageNet.

Differs from the paper: distances are those to all filters of the layer, also where norm_keep
has ruled some out; filters are not zeroed before the first epoch. As in its code, the momentum of
earlier steps still moves a zeroed filter, which is how one comes back.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role, Slot
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import filters, joint_norms, require_some, weight_slots
from prune2deploy.methods.sfp import produced_parts, smallest, zero_channels

COLUMNS_AT_ONCE = 65536
"""Entries of a filter that are turned to float64 together: layers of 100 million weights exist."""


def distance_sums(weight: Tensor) -> Tensor:
    """Return each filter's sum of distances to all filters of the layer.

    From the Gram matrix G: |a - b|^2 = G_aa + G_bb - 2 G_ab, in float64, since near duplicates
    leave few digits of that difference.

    Args:
        weight: shape (channels, ...), one row per filter. Not modified.

    Returns:
        Shape (channels,), float64, >= 0; comparable within one layer only.
    """
    flat = weight.flatten(1)
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for columns in flat.split(COLUMNS_AT_ONCE, dim=1):
        exact = columns.double()
        gram += exact @ exact.T
    energy = gram.diagonal()
    squares = energy[:, None] + energy[None, :] - 2 * gram
    squares.fill_diagonal_(0.0)
    return squares.clamp_min(0.0).sqrt().sum(dim=1)


def smallest_first(scores: Tensor, norms: Tensor, share: float) -> Tensor:
    """Lower the scores of the filters with the smallest norms below all others'.

    Args:
        scores: shape (channels,), >= 0. norms: the same shape.
        share: of the channels that are to come first, by their norms.
    """
    count = int(len(scores) * share)
    first = norms.argsort(stable=True)[:count]
    rest = norms.argsort(stable=True)[count:]
    result = scores.clone()
    if count and len(rest):
        # Between 0 and half of the others' lowest, as negative scores would upset a mean.
        result[first] = scores[rest].min() / 2 * norms[first] / norms[first].max().clamp_min(1e-30)
    return result


class FpgmOptions(MethodOptions):
    """Options of FPGM."""

    norm_keep: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each layer that stays when judged by its L2 norm; "
        "1 judges by distances alone.",
    )
    keep: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="Share of each layer's filters that is not zeroed in prune.train.",
    )


class Fpgm(Method[FpgmOptions]):
    """Distance of a filter to the others of its layer."""

    name = "fpgm"
    summary = "sum of a filter's distances to the other filters of its layer"
    source = (
        "He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median for Deep Convolutional "
        "Neural Networks Acceleration, CVPR 2019, https://arxiv.org/abs/1811.00250"
    )
    options = FpgmOptions
    may_train = True

    _model: nn.Module | None = None
    _groups: tuple[tuple[Slot, ...], ...] = ()
    _zeroed: tuple[Tensor, ...] = ()  # per group the channels that are held at zero

    def attach(self, graph: Graph) -> None:
        """Find the filters of channels that can go."""
        self._model = graph.model
        slots = [tuple(weight_slots(graph, group, Role.PRODUCER)) for group in graph.groups]
        self._groups = tuple(filter(None, slots))
        self._zeroed = ()

    def after_backward(self) -> None:
        """Filters that were zeroed after an epoch do not learn in the next one."""
        # No filter has been zeroed in the first epoch.
        for slots, gone in zip(self._groups, self._zeroed, strict=False):
            for slot in slots:
                assert self._model is not None
                gradient = self._model.get_parameter(slot.tensor).grad
                if gradient is not None:
                    zero_channels(gradient, slot, gone)

    def after_step(self, step: Step) -> None:
        """Choose the filters of every group anew at the end of an epoch, and zero them."""
        if not step.ends_epoch or self._model is None:
            return
        zeroed = []
        with torch.no_grad():
            for slots in self._groups:
                judged = self._judged(produced_parts(self._model, slots))
                gone = smallest(judged, self.settings.keep)
                zeroed.append(gone)
                for slot in slots:
                    zero_channels(self._model.get_parameter(slot.tensor), slot, gone)
        self._zeroed = tuple(zeroed)

    def score(self, context: Context) -> list[Tensor | None]:
        """Add up the distance sums over the layers that produce a group; zeros score 0."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            weights = filters(context, group)
            if not weights:
                scores.append(None)
                continue
            alive = joint_norms(weights) > 0
            scores.append(torch.where(alive, self._judged(weights), 0.0).to(weights[0].dtype))
        return require_some(scores, self.name, "no layer with weights produces them")

    def _judged(self, weights: list[Tensor]) -> Tensor:
        total = torch.stack([distance_sums(w) for w in weights]).sum(dim=0)
        if self.settings.norm_keep < 1:
            norms = joint_norms([w.double() for w in weights])
            total = smallest_first(total, norms, 1 - self.settings.norm_keep)
        return total


METHOD = Fpgm
