"""L2 norm: the filter with the least energy matters least.

Source: the filter selection of He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for
Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
https://arxiv.org/abs/1808.06866, without its soft schedule.

score_c = square root of the sum over inputs and kernel positions of W[c]^2. Where several
layers produce the same channels (residual additions) the root is taken of the sum over all
of them: it is the norm of all weights that would go.
"""

from __future__ import annotations

from torch import Tensor

from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import filter_norms


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
        return filter_norms(context, self.name)


METHOD = L2
