"""Han: weights of small magnitude are zeroed, and those that stay are trained on.

Paper: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural
Networks", NeurIPS 2015, https://arxiv.org/abs/1506.02626.

score = |w|, for each weight of convolutions and linear layers. Three ways to compare layers:

- std, the paper's: a layer's threshold is a multiple of the standard deviation of its weights,
  the same multiple in all layers. How large it is follows from the budget.
- global: one threshold for all weights.
- layer: the same share of each layer stays.

What stays goes on from its weights, and is not initialised anew. The paper finds rounds
(`kind: iterative`) far better than one cut, and trains with an L2 penalty in between, which is
weight_decay here. With the budget `pattern: "2:4"` two of each four weights stay, and layers need
no comparison.

Differs from the paper: it sets the multiple by hand, per layer for AlexNet; it lowers the
dropout's rate when it trains on, and removes neurons without inputs or outputs, neither of which
is done here. Not verified: the reduction it reports, 9 times for AlexNet and 13 for VGG-16.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from prune2deploy.methods.base import MethodOptions
from prune2deploy.methods.common.weights import WeightMethod, Weights, masks_by


def in_deviations(weights: Tensor) -> Tensor:
    """Return |w| over the standard deviation of the weights, shape (entries,) as they are.

    Equal weights have a deviation of 0 and no order; they get |w| over its mean, 1.
    """
    magnitude = weights.abs()
    if len(weights) == 0:
        return magnitude
    deviation = weights.std(correction=0)
    if deviation == 0:
        deviation = magnitude.mean().clamp(min=1e-30)
    return magnitude / deviation


class HanOptions(MethodOptions):
    """Options of Han."""

    threshold: Literal["std", "global", "layer"] = Field(
        "std",
        description="How layers are compared: by the standard deviations of their weights, by "
        "one threshold for all, or not at all: each keeps the same share.",
    )


class Han(WeightMethod[HanOptions]):
    """Magnitude of weights."""

    name = "han"
    summary = "magnitude of the weight, over its layer's standard deviation"
    source = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural "
        "Networks, NeurIPS 2015, https://arxiv.org/abs/1506.02626"
    )
    options = HanOptions
    budgets = ("weights", "pattern")

    def masks(self, weights: Weights) -> dict[str, Tensor]:
        """Keep the weights with the largest magnitudes."""
        how = self.settings.threshold
        scores = weights.scores(in_deviations if how == "std" else Tensor.abs)
        return masks_by(scores, weights, per_layer=how == "layer")


METHOD = Han
