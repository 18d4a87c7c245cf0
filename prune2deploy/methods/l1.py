"""L1 norm: a filter with small weights matters little.

Paper: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets",
ICLR 2017, https://arxiv.org/abs/1608.08710.

score_c = sum over inputs and kernel positions of |W[c]|. Where several layers produce
the same channels (residual additions) their scores are added; the paper lets the
shortcut's projection decide alone. Per-layer ratios from a sensitivity scan are a
matter of the budget and not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import filters, require_some


def score(weight: Tensor) -> Tensor:
    """Return the L1 norm of each filter.

    Args:
        weight: shape (channels, ...), one row per filter. Not modified.

    Returns:
        Shape (channels,), same dtype, >= 0; comparable within one layer only.
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), ord=1, dim=1)
    return norms


class L1(Method[MethodOptions]):
    """Sum of each filter's absolute weights."""

    name = "l1"
    summary = "sum of a filter's absolute weights"
    source = (
        "Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, "
        "ICLR 2017, https://arxiv.org/abs/1608.08710"
    )

    def score(self, context: Context) -> list[Tensor | None]:
        """Add up the norms over the layers that produce a group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = [score(w) for w in filters(context, group)]
            scores.append(sum(parts[1:], start=parts[0]) if parts else None)
        return require_some(scores, self.name, "no layer with weights produces them")


METHOD = L1
