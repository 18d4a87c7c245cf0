"""Network slimming: train with an L1 penalty on batch-norm scales, remove the small ones.

Paper: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks
through Network Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519.

Training minimises loss + penalty * sum |gamma|; the penalty's subgradient
penalty * sign(gamma) is added to the gradient after the backward pass, as in the
authors' code, so that loss scaling and accumulation leave it alone. score_c = |gamma_c|.
The paper starts from gamma = 0.5 and trains 160 epochs at learning rate 0.1.

Differs from the paper: only scales of channels that can be removed are penalised (the
others would shrink for nothing); where several batch norms share channels, the score is
the mean of |gamma|.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import mean_scales, scale_parameters


def add_subgradient(gamma: nn.Parameter, penalty: float) -> None:
    """Add penalty * sign(gamma) to gamma.grad; nothing where there is no gradient."""
    if gamma.grad is not None:
        gamma.grad.add_(torch.sign(gamma.detach()), alpha=penalty)


class NetworkSlimmingOptions(MethodOptions):
    """Options of network slimming."""

    penalty: float = Field(
        1e-4,
        ge=0,
        description="Weight of the L1 penalty on batch-norm scales; the paper's code uses 1e-4 "
        "for VGG and 1e-5 for ResNet and DenseNet.",
    )


class NetworkSlimming(Method[NetworkSlimmingOptions]):
    """Size of the batch-norm scale after training with a penalty on it."""

    name = "network_slimming"
    summary = "size of the batch-norm scale after training with a penalty on it"
    source = (
        "Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through "
        "Network Slimming, ICCV 2017, https://arxiv.org/abs/1708.06519"
    )
    cost = "one training run"
    options = NetworkSlimmingOptions
    needs_training = True
    normalisation = "none"  # one threshold for the whole network is the method

    _gammas: tuple[nn.Parameter, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the scales of channels that can go."""
        self._gammas = scale_parameters(graph)

    def after_backward(self) -> None:
        """Push every scale towards zero."""
        for gamma in self._gammas:
            add_subgradient(gamma, self.settings.penalty)

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean of |gamma| over the batch norms of a group."""
        return mean_scales(context, self.name)


METHOD = NetworkSlimming
