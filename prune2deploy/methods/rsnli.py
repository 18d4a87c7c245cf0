"""RSNLI: batch-norm scales shrink by soft thresholds until they are exactly zero.

Paper: Ye, Lu, Lin, Wang, "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel
Pruning of Convolution Layers", ICLR 2018, https://arxiv.org/abs/1802.00124.

Training minimises loss + penalty * sum over layers of cost_l * sum |gamma_l| by iterative
shrinkage: after each step of the optimizer with learning rate lr,

    gamma <- sign(gamma) * max(0, |gamma| - lr * penalty * cost_l)

so that scales reach zero and stay there, which the subgradient of an L1 penalty never does.
cost_l is what a channel of the layer costs: the multiply-accumulates that go with it, over the
mean of all channels. score_c = |gamma_c|; where several batch norms share channels, their mean.

A channel whose scale is zero is the constant shift beta; cutting it shifts what reads it,
until the batch-norm statistics are renewed or the network is trained on.

Differs from the paper: its formula for the cost could not be read in full, and this one is
counted on the network itself; it takes no momentum for the scales, where the recipe's
optimizer treats all parameters alike; its rescaling of pretrained networks is not here.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import mean_scales


def soft_threshold(values: Tensor, by: Tensor) -> Tensor:
    """Return values moved towards zero by `by` each, and zero where they would pass it."""
    return values.sign() * (values.abs() - by).clamp_min(0.0)


def relative_costs(graph: Graph) -> list[float]:
    """Per group the multiply-accumulates that go with one channel, over the mean channel's."""
    full = graph.full
    whole = graph.cost.macs(full)
    costs = []
    for number in range(len(graph.groups)):
        fewer = full.copy()
        fewer[number] -= 1
        costs.append(float(whole - graph.cost.macs(fewer)))
    mean = float(np.average(costs, weights=full)) if costs else 0.0
    return [cost / mean if mean else 1.0 for cost in costs]


class RsnliOptions(MethodOptions):
    """Options of RSNLI."""

    penalty: float = Field(
        0.001,
        ge=0,
        description="Weight of the penalty; the paper's ResNet-20 takes 0.001, later 0.005. "
        "Raise it until scales reach zero.",
    )


class Rsnli(Method[RsnliOptions]):
    """Batch-norm scales after training in which they shrink to exactly zero."""

    name = "rsnli"
    summary = "batch-norm scale after training that shrinks scales to exactly zero"
    source = (
        "Ye, Lu, Lin, Wang: Rethinking the Smaller-Norm-Less-Informative Assumption in Channel "
        "Pruning of Convolution Layers, ICLR 2018, https://arxiv.org/abs/1802.00124"
    )
    cost = "one training run"
    options = RsnliOptions
    needs_training = True
    normalisation = "none"  # the penalty's costs already weigh layers against one another

    _gammas: tuple[tuple[nn.Parameter, Tensor], ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the scales of channels that can go, and what each costs."""
        costs: dict[str, Tensor] = {}
        for group, cost in zip(graph.groups, relative_costs(graph), strict=True):
            for slot in group.of_role(Role.SCALE):
                gamma = graph.model.get_parameter(slot.tensor)
                vector = costs.setdefault(slot.tensor, torch.zeros_like(gamma.detach()))
                vector[torch.from_numpy(slot.index.reshape(-1)).to(vector.device)] = cost
        self._gammas = tuple((graph.model.get_parameter(n), cost) for n, cost in costs.items())

    def after_step(self, step: Step) -> None:
        """Shrink every scale by lr * penalty * cost."""
        with torch.no_grad():
            for gamma, cost in self._gammas:
                gamma.copy_(soft_threshold(gamma, step.lr * self.settings.penalty * cost))

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean of |gamma| over the batch norms of a group."""
        return mean_scales(context, self.name)


METHOD = Rsnli
