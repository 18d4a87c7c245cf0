"""C-SGD: filters of a cluster are pulled together until they are one, and then merged.

Papers: Ding, Ding, Guo, Han, "Centripetal SGD for Pruning Very Deep Convolutional Networks with
Complicated Structure", CVPR 2019, https://arxiv.org/abs/1904.03837; extended in
https://arxiv.org/abs/2107.14444.

Before training the filters of each layer are put into ceil(keep * channels) clusters by k-means.
Each step then moves filter F_j of cluster H along

    mean over H of the gradients + decay * F_j + eps * (F_j - mean over H of the filters)

where decay is the optimizer's own. The gradient is the same for all of a cluster and the last two
terms shrink what tells its filters apart by 1 - lr * (decay + eps) in every plain step, so they
end up as copies of one another. Biases, scales and shifts are treated alike, with eps / 10. Where
several layers produce the same channels (residual additions) the first is clustered and the
others follow. When it is known which channels stay, each that goes is merged into the first of
its cluster that stays: what reads them is added up, and what makes them becomes their mean. Of
copies this changes nothing.

score_c is 1 to 2 for the first of a cluster and below 1 for the others, so that the others go
first: those least far from the mean of their cluster, and at last clusters of small norm. Give
the budget the same share as keep; where it removes a whole cluster, that is lost.

Differs from the papers: eps is such that lr * eps adds up to `pull` over the training however
long that is, about what they have over theirs (16 over 600 epochs with eps 0.003 for ResNet-56);
lr * eps is at most 0.25. Weight decay of biases and norms, and twice the learning rate of
biases, are the recipe's affair. k-means starts from the clusters of Ward's method, which draws
no random numbers, and goes on until nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.methods.base import Context, IndexTable, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import filters, require_some, rows

MOST = 0.25
"""lr * eps of a step, at most: what is pulled further than to the mean swings about it."""


def clusters_of(points: Tensor, count: int) -> Tensor:
    """Put rows into `count` clusters by k-means.

    Args:
        points: shape (channels, entries).

    Returns:
        int64, shape (channels,): for each the first row of its cluster.
    """
    values = points.detach().double().cpu().numpy()
    if count >= len(values):
        return torch.arange(len(values))
    labels = cut_tree(linkage(values, "ward"), n_clusters=[count])[:, 0]
    for _ in range(100):
        means = np.stack([values[labels == label].mean(axis=0) for label in range(count)])
        nearest = cdist(values, means, "sqeuclidean").argmin(axis=1)
        if (nearest == labels).all() or len(np.unique(nearest)) < count:
            break
        labels = nearest
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return torch.from_numpy(first[which])


def averaged(values: Tensor, first: Tensor) -> Tensor:
    """Return for each row the mean of its cluster's.

    Args:
        values: shape (channels, entries). first: see `clusters_of`.
    """
    first = first.to(values.device)
    sums = torch.zeros_like(values).index_add_(0, first, values)
    counts = torch.bincount(first, minlength=len(values)).clamp_min(1)
    return (sums / counts[:, None].to(values.dtype))[first]


def summed(values: Tensor, first: Tensor) -> Tensor:
    """Add the rows of each cluster up in its first row, and leave zeros in the others."""
    return torch.zeros_like(values).index_add_(0, first.to(values.device), values)


def pulled(gradient: Tensor, weight: Tensor, first: Tensor, eps: float) -> Tensor:
    """Return the direction of a step but for weight decay, which the optimizer adds.

    Args:
        gradient, weight: shape (channels, entries). first: see `clusters_of`.
    """
    return averaged(gradient, first) + eps * (weight - averaged(weight, first))


def score(points: Tensor, first: Tensor) -> Tensor:
    """Return the score of filters in clusters; see the top of this file.

    Args:
        points: shape (channels, entries). first: see `clusters_of`.

    Returns:
        Shape (channels,), from 0 to 2, of the type of the points.
    """
    means = averaged(points, first)
    norms = means.norm(dim=1)
    scale = norms.mean().clamp_min(torch.finfo(points.dtype).tiny)
    away = (points - means).norm(dim=1)
    leads = first.to(points.device) == torch.arange(len(points), device=points.device)
    return torch.where(leads, 1 + norms / (norms + scale), away / (away + scale))


class CsgdOptions(MethodOptions):
    """Options of C-SGD."""

    keep: float = Field(
        0.625, gt=0, lt=1, description="Clusters of each layer, as a share of its filters."
    )
    pull: float = Field(
        15.0,
        gt=0,
        description="Sum of lr * eps over the training: in plain steps filters of a cluster end "
        "up exp(pull) times closer.",
    )


class Csgd(Method[CsgdOptions]):
    """First of each cluster of filters, after training that makes a cluster's filters one."""

    name = "csgd"
    summary = "place in its cluster, whose filters become one in training and are merged"
    source = (
        "Ding, Ding, Guo, Han: Centripetal SGD for Pruning Very Deep Convolutional Networks with "
        "Complicated Structure, CVPR 2019, https://arxiv.org/abs/1904.03837"
    )
    cost = "one training run"
    options = CsgdOptions
    needs_training = True
    by_place = True
    normalisation = "none"  # leaders and followers are told apart over the whole network

    _model: nn.Module | None = None
    _makers: tuple[tuple[list[Slot], Tensor], ...] = ()
    _trained: dict[tuple[str, int], Tensor]
    _eps = 0.0

    def __init__(self, settings: CsgdOptions) -> None:
        super().__init__(settings)
        self._trained = {}

    def attach(self, graph: Graph) -> None:
        """Cluster the filters of channels that can go."""
        self._trained = {}
        found = list(zip(graph.groups, self._clusters(Context(graph)), strict=True))
        self._trained = {(g.name, g.size): first for g, first in found if first is not None}
        self._makers = tuple((_makers(g), first) for g, first in found if first is not None)
        self._model = graph.model
        self._eps = 0.0

    def after_backward(self) -> None:
        """Give all of a cluster the same gradient, and pull them together."""
        if self._model is None:
            return
        with torch.no_grad():
            for slots, first in self._makers:
                for slot in slots:
                    weight = self._model.get_parameter(slot.tensor)
                    if weight.grad is None:
                        continue
                    eps = self._eps if weight.dim() > 1 else self._eps / 10
                    step = pulled(rows(weight.grad, slot), rows(weight, slot), first, eps)
                    write_rows(weight.grad, slot, step)

    def after_step(self, step: Step) -> None:
        """Find eps for the next step."""
        if step.lr > 0:
            self._eps = min(self.settings.pull / step.total, MOST) / step.lr

    def detach(self) -> None:
        """Let go of the model; its clusters are remembered."""
        self._model = None
        self._makers = ()

    def score(self, context: Context) -> list[Tensor | None]:
        """Place in the clusters of the layer that comes first, per group."""
        groups = zip(context.graph.groups, self._clusters(context), strict=True)
        scores = [
            None if first is None else score(filters(context, group)[0], first)
            for group, first in groups
        ]
        return require_some(scores, self.name, "no layer with weights produces them")

    def before_cut(self, context: Context, kept: Sequence[IndexTable]) -> None:
        """Merge channels that go into the first of their cluster that stays."""
        tensors = {**dict(context.model.named_parameters()), **dict(context.model.named_buffers())}
        groups = zip(context.graph.groups, self._clusters(context), kept, strict=True)
        with torch.no_grad():
            for group, first, stay in groups:
                if first is None:
                    continue
                goal = merged_into(first, stay)
                for slot in group.slots:
                    merge = summed if slot.role == Role.CONSUMER else averaged
                    tensor = tensors[slot.tensor]
                    write_rows(tensor, slot, merge(rows(tensor, slot), goal))

    def _clusters(self, context: Context) -> list[Tensor | None]:
        """Per group the clusters of the training, or else of the filters as they are."""
        clusters: list[Tensor | None] = []
        for group in context.graph.groups:
            found = self._trained.get((group.name, group.size))
            parts = filters(context, group)
            if found is None and parts:
                # 100 * 0.07 is a little above 7 in floating point.
                count = math.ceil(group.size * self.settings.keep - 1e-9)
                found = clusters_of(parts[0], count)
            clusters.append(found if parts else None)
        return clusters


def merged_into(first: Tensor, stay: IndexTable) -> Tensor:
    """Return for each channel the one that it becomes a part of.

    Args:
        first: see `clusters_of`. stay: the channels that stay, ascending.

    Returns:
        int64, shape (channels,): itself if it stays or nothing of its cluster does.
    """
    heads: dict[int, int] = {}
    for channel in stay.tolist():
        heads.setdefault(int(first[channel]), channel)
    staying = set(stay.tolist())
    return torch.tensor(
        [c if c in staying else heads.get(int(f), c) for c, f in enumerate(first.tolist())]
    )


def write_rows(tensor: Tensor, slot: Slot, values: Tensor) -> None:
    """Put back what `rows` returned, changed."""
    index = torch.from_numpy(slot.index.reshape(-1)).to(tensor.device)
    moved = tensor.movedim(slot.dim, 0)
    moved.index_copy_(0, index, values.reshape(len(index), *moved.shape[1:]).to(tensor.dtype))


def _makers(group: Group) -> list[Slot]:
    return [s for role in (Role.PRODUCER, Role.SCALE, Role.SHIFT) for s in group.of_role(role)]


METHOD = Csgd
