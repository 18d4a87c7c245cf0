"""Polarization: batch-norm scales are driven to 0 or to 1, with nothing between.

Paper: Zhuang, Zhang, Huang, Zeng, Shuang, Li, "Neuron-level Structured Pruning using
Polarization Regularizer", NeurIPS 2020.

Training minimises loss + penalty * R with R = t * sum |gamma| - sum |gamma - mean(gamma)|,
the mean over all scales of the network and differentiated too; after each step scales are
clamped to [0, 1]. R rewards distance from the mean: large scales are pushed up and small ones
down, where an L1 penalty pushes all of them down. By itself R would leave a share of
1/2 + t/4 of the scales at 0. score_c = gamma_c.

The authors' code uses penalty 5e-5 and t 1.4 for ResNet-56, 3e-5 and 1.5 for VGG-16. Differs
from it: only scales of channels that can be removed take part; the budget decides how many
go, not the gap in their histogram; and no gate is put where there is no batch norm.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import mean_scales, scale_parameters


def regularizer(gamma: Tensor, t: float) -> Tensor:
    """Return R of all scales, a scalar.

    Args:
        gamma: shape (channels,), of the whole network.
    """
    return t * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()


class PolarizationOptions(MethodOptions):
    """Options of polarization."""

    penalty: float = Field(5e-5, ge=0, description="Weight of the regularizer.")
    t: float = Field(
        1.4,
        ge=-2,
        le=2,
        description="How many scales end at 0: by the regularizer alone a share of 1/2 + t/4.",
    )


class Polarization(Method[PolarizationOptions]):
    """Batch-norm scales after training that drives them to 0 or 1."""

    name = "polarization"
    summary = "batch-norm scale after training that drives scales to 0 or 1"
    source = (
        "Zhuang, Zhang, Huang, Zeng, Shuang, Li: Neuron-level Structured Pruning using "
        "Polarization Regularizer, NeurIPS 2020, https://proceedings.neurips.cc/paper/2020/hash/"
        "703957b6dd9e3a7980e040bee50ded65-Abstract.html"
    )
    cost = "one training run"
    options = PolarizationOptions
    needs_training = True
    normalisation = "none"  # one regularizer over the whole network makes them comparable

    _gammas: tuple[nn.Parameter, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the scales of channels that can go."""
        self._gammas = scale_parameters(graph)

    def extra_loss(self) -> Tensor | None:
        """penalty * R over all scales together."""
        if not self._gammas:
            return None
        together = torch.cat([gamma.flatten() for gamma in self._gammas])
        return self.settings.penalty * regularizer(together, self.settings.t)

    def after_step(self, step: Step) -> None:
        """Keep every scale in [0, 1]."""
        with torch.no_grad():
            for gamma in self._gammas:
                gamma.clamp_(0.0, 1.0)

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean of |gamma| over the batch norms of a group."""
        return mean_scales(context, self.name)


METHOD = Polarization
