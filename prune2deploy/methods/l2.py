"""L2 norm: the filter with the least energy matters least.

Source: the filter selection of He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for
Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
https://arxiv.org/abs/1808.06866, without its soft schedule.

score_c = square root of the sum over inputs and kernel positions of W[c]^2. Where several
layers produce the same channels (residual additions) the root is taken of the sum over all
of them: it is the norm of all weights that would go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune2deploy.methods.base import Context, Method, MethodOptions, filters, require_some


def score(weight: Tensor) -> Tensor:
    """Return the L2 norm of each filter.

    Args:
        weight: shape (channels, ...), one row per filter. Not modified.

    Returns:
        Shape (channels,), same dtype, >= 0; comparable within one layer only.
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


class L2(Method[MethodOptions]):
    """Root of the sum of each filter's squared weights."""

    name = "l2"
    summary = "root of the sum of a filter's squared weights"
    source = (
        "He, Kang, Dong, Fu, Yang: Soft Filter Pruning for Accelerating Deep Convolutional "
        "Neural Networks (its filter selection), IJCAI 2018, https://arxiv.org/abs/1808.06866"
    )

    def score(self, context: Context) -> list[Tensor | None]:
        """The norm over all layers that produce a group, taken together."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = filters(context, group)
            scores.append(score(torch.cat(parts, dim=1)) if parts else None)
        return require_some(scores, self.name, "no layer with weights produces them")


METHOD = L2
