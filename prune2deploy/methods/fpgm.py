"""FPGM: a filter near the geometric median of its layer can be replaced by the others.

Paper: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional
Neural Networks Acceleration", CVPR 2019, https://arxiv.org/abs/1811.00250.

score_c = sum over the layer's filters j of the Euclidean distance |W[c] - W[j]|. The filters
with the smallest sums lie nearest to the point with the smallest sum of all, the geometric
median. A small filter far from the others is kept, where a norm would remove it.

norm_keep: the paper also mixes both rules. Below 1, the filters with the smallest L2 norms,
the share 1 - norm_keep of each layer, come before all others, whatever their distance.

Where several layers produce the same channels (residual additions) their sums are added.
Differs from the paper: it zeroes the chosen filters after every epoch of a training and holds
them at zero until the next; here a trained network is judged once, and the schedule decides
when it is cut.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from prune2deploy.methods.base import Context, Method, MethodOptions, filters, require_some

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


class Fpgm(Method[FpgmOptions]):
    """Distance of a filter to the others of its layer."""

    name = "fpgm"
    summary = "sum of a filter's distances to the other filters of its layer"
    source = (
        "He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median for Deep Convolutional "
        "Neural Networks Acceleration, CVPR 2019, https://arxiv.org/abs/1811.00250"
    )
    options = FpgmOptions

    def score(self, context: Context) -> list[Tensor | None]:
        """Add up the distance sums over the layers that produce a group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            weights = filters(context, group)
            if not weights:
                scores.append(None)
                continue
            total = torch.stack([distance_sums(w) for w in weights]).sum(dim=0)
            if self.settings.norm_keep < 1:
                norms = torch.cat(weights, dim=1).double().norm(dim=1)
                total = smallest_first(total, norms, 1 - self.settings.norm_keep)
            scores.append(total.to(weights[0].dtype))
        return require_some(scores, self.name, "no layer with weights produces them")


METHOD = Fpgm
