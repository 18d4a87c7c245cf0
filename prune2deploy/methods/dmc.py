"""DMC: gates that are zero or one, trained for a budget while the weights stand still.

Paper: Gao, Huang, Pei, Huang, "Discrete Model Compression with Resource Constraint for Deep
Neural Networks", CVPR 2020, https://openaccess.thecvf.com/content_CVPR_2020/html/
Gao_Discrete_Model_Compression_With_Resource_Constraint_for_Deep_Neural_Networks_CVPR_2020_paper.html

Every channel has a number theta, 1 at first and held in [0, 1], and behind the activation it is
multiplied by

    g = 1 if theta >= 0.5 else 0,    or with `stochastic` in training: 1 with probability theta

Gradients pass g as if it were theta itself (straight through). Weights do not move and batch
norms use their stored statistics meanwhile; the numbers alone are trained, by Adam, to minimise

    loss + penalty * log(|T(g) - keep * 100| + 1)

where T(g) are the multiply-accumulates of the network that theta >= 0.5 leaves, in percent of
the original's. score_c = theta, which the budget should cut at 0.5: give `keep` the share of
multiply-accumulates that the budget asks for. Channels whose gate is zero at the end are written
down as zeros in the weights that read them. Channels joined by an addition share one gate.

Differs from the paper: the form of the last term was recalled, and its weight, the learning
rate and T in percent are ours; the decay of theta towards 0.5 is not here. Without training,
channels are ranked by the norms of their filters.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.methods.base import MethodOptions, Step
from prune2deploy.methods.common.gated import Gated


def binary(theta: Tensor, stochastic: bool = False) -> Tensor:
    """Return gates of 0 or 1; the gradient is theta's inside [0, 1] and zero outside.

    Args:
        theta: any shape.
        stochastic: draw them, 1 with probability theta.
    """
    now = theta.detach()
    held = now.clamp(0.0, 1.0)
    hard = torch.bernoulli(held) if stochastic else (held >= 0.5).to(held.dtype)
    # The difference is an exact zero that has the gradient, at both ends as well.
    return hard + (theta - now) * (held == now)


def distance(percent: Tensor, wanted: float) -> Tensor:
    """Return log(|percent - wanted| + 1)."""
    return ((percent - wanted).abs() + 1).log()


class DmcOptions(MethodOptions):
    """Options of DMC."""

    keep: float = Field(
        0.5, gt=0, lt=1, description="Share of multiply-accumulates to train the gates for."
    )
    penalty: float = Field(2.0, ge=0, description="Weight of the distance from that share.")
    gate_lr: float = Field(1e-3, gt=0, description="Learning rate of the gates, for Adam.")
    stochastic: bool = Field(False, description="Draw the gates in training.")


class Dmc(Gated[DmcOptions]):
    """Gates of zero or one that are trained for a budget with frozen weights."""

    name = "dmc"
    summary = "gate of zero or one, trained for a budget while the weights stand still"
    source = (
        "Gao, Huang, Pei, Huang: Discrete Model Compression with Resource Constraint for Deep "
        "Neural Networks, CVPR 2020, https://openaccess.thecvf.com/content_CVPR_2020/html/"
        "Gao_Discrete_Model_Compression_With_Resource_Constraint_for_Deep_Neural_Networks_"
        "CVPR_2020_paper.html"
    )
    cost = "one training run"
    options = DmcOptions
    place = "read"

    _frozen: tuple[nn.Parameter, ...] = ()
    _still: _StillNorms | None = None

    def attach(self, graph: Graph) -> None:
        """Freeze the weights and open all gates."""
        self._cost, self._macs = graph.cost, graph.cost.macs(graph.full)
        weights = tuple(p for p in graph.model.parameters() if p.requires_grad)
        stochastic = self.settings.stochastic
        self.gate(
            graph,
            1.0,
            lambda gates: binary(gates.get_parameter("learned"), stochastic and gates.training),
        )
        self._frozen = weights
        for parameter in weights:
            parameter.requires_grad_(False)
        self._still = _StillNorms(graph.model)
        self._optimizer = torch.optim.Adam([self.numbers], lr=self.settings.gate_lr)

    def extra_loss(self) -> Tensor:
        """penalty * distance of the network's cost from what is wanted."""
        percent = self._cost.soft_macs(self.kept(self.gates.now())) * (100 / self._macs)
        return self.settings.penalty * distance(percent, 100 * self.settings.keep)

    def after_step(self, step: Step) -> None:
        """Move the gates."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            # Outside there is no gradient that could bring them back.
            self.numbers.clamp_(0.0, 1.0)

    def worth(self) -> Tensor:
        """Theta, which says more than the gates."""
        return self.numbers

    def detach(self) -> None:
        """Write the gates down and let the weights move again."""
        super().detach()
        if self._still is not None:
            self._still.end()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen, self._still = (), None


class _StillNorms:
    """Keeps a model's batch norms in eval mode during forward passes; the flags are left alone."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._flags: list[bool] = []
        self._handles = (
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        )

    def _before(self, model: nn.Module, inputs: Any) -> None:
        self._flags = [norm.training for norm in self._norms]
        for norm in self._norms:
            norm.eval()

    def _after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        for norm, flag in zip(self._norms, self._flags, strict=True):
            norm.train(flag)

    def end(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


METHOD = Dmc
