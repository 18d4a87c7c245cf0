"""GDP: gates on what layers read, which a shrinking constant drives to zero or one.

Paper: Guo, Yuan, Tan, Wang, Yang, Liu, "GDP: Stabilized Neural Network Pruning via Gates with
Differentiable Polarization", ICCV 2021, https://arxiv.org/abs/2109.02220.

Every channel has a number a, and the weights that read the channel are multiplied by

    g = a^2 / (a^2 + eps)

while training minimises loss + penalty * MACs(g) / MACs, where MACs(g) counts a channel as g
channels: a product of the gates in front of a layer and behind it. eps falls from 0.1 to 1e-4
by equal factors, so that g ends near one or near zero. a is moved by SGD with momentum 0.9 and
a tenth of the recipe's learning rate. dg/da is zero at a = 0, so a gate that gets there stays
there: a step that would cross zero ends at zero, and when g has been below 0.001 for 100 steps,
a becomes zero. At the end the gates are multiplied into the weights,
which changes nothing, and score_c = g. Channels joined by an addition share one gate; depthwise
convolutions have none, what reads them has.

Differs from the paper: g is multiplied by 1 + eps, so that a gate that starts at a = 1 changes
nothing whatever eps is. The paper's solver, which alternates with a relaxed copy of the gates,
is replaced by the steps above; the form of the gate, the course of eps and the penalty could
not be verified. Without training, channels are ranked by the norms of their filters.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Graph
from prune2deploy.methods.base import MethodOptions, Step
from prune2deploy.methods.common.gated import Gated
from prune2deploy.methods.common.gates import Gates

EPS_FIRST, EPS_LAST = 0.1, 1e-4
MOMENTUM = 0.9
LOW, LOW_STEPS = 1e-3, 100
"""A gate that is below LOW for that many steps in a row is closed for good."""


def polarized(a: Tensor, eps: float | Tensor) -> Tensor:
    """Return a^2 / (a^2 + eps): 0 at a = 0, where its slope is 0 too, towards 1 far from it."""
    return a.square() / (a.square() + eps)


def eps_at(progress: float) -> float:
    """Return eps after this share of the training."""
    return float(EPS_FIRST * (EPS_LAST / EPS_FIRST) ** progress)


class GdpOptions(MethodOptions):
    """Options of GDP."""

    penalty: float = Field(
        1.0,
        ge=0,
        description="Weight of the share of multiply-accumulates that is left. Raise it until "
        "enough gates reach zero.",
    )
    gate_rate: float = Field(
        0.1, gt=0, description="Learning rate of the gates, as a multiple of the recipe's."
    )


class Gdp(Gated[GdpOptions]):
    """Gates on what layers read, which end near one or at zero."""

    name = "gdp"
    summary = "gate on what reads it, trained against the cost and driven to zero or one"
    source = (
        "Guo, Yuan, Tan, Wang, Yang, Liu: GDP: Stabilized Neural Network Pruning via Gates with "
        "Differentiable Polarization, ICCV 2021, https://arxiv.org/abs/2109.02220"
    )
    cost = "one training run"
    options = GdpOptions
    place = "read"

    def attach(self, graph: Graph) -> None:
        """Open all gates."""
        self._cost, self._macs = graph.cost, graph.cost.macs(graph.full)
        gates = self.gate(graph, 1.0, _values)
        # A buffer, so that weights of an earlier epoch come back with the eps they had.
        gates.register_buffer("eps", torch.tensor(EPS_FIRST, device=self.numbers.device))
        self._speed = torch.zeros_like(self.numbers)
        self._low = torch.zeros_like(self.numbers)

    def extra_loss(self) -> Tensor:
        """penalty * share of the multiply-accumulates that the gates leave."""
        left = self._cost.soft_macs(self.kept(self.gates.now()))
        return self.settings.penalty / self._macs * left

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move the gates, close those that stayed low, and let eps fall."""
        a = self.numbers
        eps = self.gates.get_buffer("eps")
        self._speed, self._low = self._speed.to(a), self._low.to(a)
        if a.grad is not None:
            self._speed = MOMENTUM * self._speed + a.grad
            moved = a - self.settings.gate_rate * step.lr * self._speed
            # The slope near zero is steep: beyond it the gate would be flung open again.
            a.copy_(torch.where(moved * a > 0, moved, 0.0))
            a.grad = None
        self._low = (self._low + 1) * (polarized(a, eps) < LOW)
        closed = (self._low >= LOW_STEPS) | (a == 0)
        a.masked_fill_(closed, 0.0)
        self._speed.masked_fill_(closed, 0.0)
        eps.fill_(eps_at(step.progress))


def _values(gates: Gates) -> Tensor:
    eps = gates.get_buffer("eps")
    return (1 + eps) * polarized(gates.get_parameter("learned"), eps)


METHOD = Gdp
