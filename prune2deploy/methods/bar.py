"""BAR: noisy gates, and a penalty on them that grows without bound near the budget.

Paper: Lemaire, Achkar, Jodoin, "Structured Pruning of Neural Networks with Budget-Aware
Regularization", CVPR 2019, https://arxiv.org/abs/1811.09332.

Every channel has a number phi, and its batch norms (or filters) are multiplied by the hard
concrete gate

    s = sigmoid((log u - log(1 - u) + phi) / b), u drawn in (0, 1);    in eval mode s = sigmoid(phi)
    z = clamp(s * (zeta - gam) + gam, 0, 1),    b = 2/3, gam = -0.1, zeta = 1.1

which is above zero with probability P = sigmoid(phi - b * log(-gam / zeta)). With area_c the
numbers of channel c in the feature maps that layers read, training minimises

    (1 - alpha) * loss + alpha * KD + penalty / batch * r^2 / (1 - r) * sum_c area_c * P_c
    r = (V - a) / (B - a)

V is the volume of the channels whose gate is above zero in eval mode, a a little less than the
target keep * V_full, and B a budget that falls from 1.01 * V_full to the target along a sigmoid.
The factor is 1e10 where r >= 1 and zero where r <= 0. KD is distillation (temperature 4) from
the network as it was before. At the end z is multiplied into the norms, and score_c = P_c, which
orders channels as z does. The budget is one of volume, not of multiply-accumulates. Channels that
the recipe's budget keeps although z is zero are opened before the cut.

Differs from the paper: the equations are those of a re-implementation that names the paper's;
weights are trained by the recipe's optimizer, only phi by Adam; channels joined by an addition
share one gate, where the paper lets every block choose its own. phi starts at 0, where every
gate is 0.5 in eval mode, so attaching changes the network; `start: 3` does not. Without training,
channels are ranked by the norms of their filters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Graph, Tap
from prune2deploy.channels.activations import read_activations
from prune2deploy.channels.forward import batch_size
from prune2deploy.methods.base import MethodOptions, Step
from prune2deploy.methods.common.gated import Gated
from prune2deploy.methods.common.gates import Gates
from prune2deploy.methods.common.teacher import Teacher

SHARPNESS, LOWEST, HIGHEST = 2 / 3, -0.1, 1.1
"""b, gam and zeta above."""
SLOPE = 10.0
MARGIN = 1e-4
CAP = 1e10
TEMPERATURE = 4.0


def stretched(s: Tensor) -> Tensor:
    """Return s in (0, 1) stretched beyond both ends, and cut off there."""
    return (s * (HIGHEST - LOWEST) + LOWEST).clamp(0.0, 1.0)


def drawn(phi: Tensor, u: Tensor) -> Tensor:
    """Return the gates of training for u drawn in (0, 1)."""
    return stretched(((u.log() - (-u).log1p() + phi) / SHARPNESS).sigmoid())


def alive(phi: Tensor) -> Tensor:
    """Return the probability that a gate is above zero."""
    return (phi - SHARPNESS * math.log(-LOWEST / HIGHEST)).sigmoid()


def tightened(progress: float) -> float:
    """Return how far the budget is on its way, 0 to 1, after this share of the training."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    first, last = sigmoid(-SLOPE / 2), sigmoid(SLOPE / 2)
    return (sigmoid(SLOPE * (progress - 0.5)) - first) / (last - first)


def multiplier(volume: Tensor, least: float, budget: float) -> Tensor:
    """Return r^2 / (1 - r) with r = (volume - least) / (budget - least), within 0 and 1e10."""
    r = (volume - least) / (budget - least)
    inside = r.clamp(0.0, 1.0)
    return torch.where(r < 1, inside.square() / (1 - inside), CAP).clamp_max(CAP)


class BarOptions(MethodOptions):
    """Options of BAR."""

    keep: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the feature maps' volume to train for, of channels that can go.",
    )
    penalty: float = Field(1e-5, ge=0, description="Weight of the volume that is left.")
    gate_lr: float = Field(
        1e-3,
        gt=0,
        description="Learning rate of the gates, for Adam. A gate needs some (start + 2.4) / "
        "gate_lr steps to close; where that is more than a tenth of the training, the budget "
        "outruns the gates, and they close whatever they are worth: raise it.",
    )
    alpha: float = Field(0.9, ge=0, le=1, description="Weight of distillation against the loss.")
    start: float = Field(
        0.0, description="What phi is at first; 3 or more leaves a trained network as it is."
    )


class Bar(Gated[BarOptions]):
    """Noisy gates under a budget of activation volume that tightens as training goes on."""

    name = "bar"
    summary = "noisy gate, trained against a budget of activations that tightens"
    source = (
        "Lemaire, Achkar, Jodoin: Structured Pruning of Neural Networks with Budget-Aware "
        "Regularization, CVPR 2019, https://arxiv.org/abs/1811.09332"
    )
    cost = "one training run"
    options = BarOptions
    attach_changes = True  # gates start half closed, unless `start` says otherwise
    place = "made"

    _teacher: Teacher | None = None

    def attach(self, graph: Graph) -> None:
        """Copy the network as the teacher, measure its feature maps and put gates in."""
        self._teacher = Teacher(graph.model, self.name)
        areas = areas_of(graph)
        self.gate(graph, self.settings.start, _values)
        per_group = [torch.full((g.size,), a) for g, a in zip(graph.groups, areas, strict=True)]
        self._areas = self._layout.join(list(per_group), 0.0)
        self._whole = float(self._areas.sum())
        self._progress = 0.0
        self._optimizer = torch.optim.Adam([self.numbers], lr=self.settings.gate_lr)

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """Distil, and add the volume that is left times what the budget makes of it."""
        assert self._teacher is not None, "attach comes first"
        teacher, student = self._teacher.answers(images, output)
        # Temperature squared, so that gradients do not shrink with it.
        kd = TEMPERATURE**2 * F.kl_div(
            (student / TEMPERATURE).log_softmax(dim=1),
            (teacher / TEMPERATURE).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        alpha = self.settings.alpha
        weight = self.settings.penalty / len(images) * self._multiplier()
        left = (self._areas.to(student.device) * alive(self.numbers)).sum()
        return (1 - alpha) * loss + alpha * kd + weight * left

    def _multiplier(self) -> Tensor:
        with torch.no_grad():
            open_now = (self.gates.now() > 0).to(self._areas.dtype)
            volume = (self._areas.to(open_now.device) * open_now).sum()
        target = self.settings.keep * self._whole
        share = tightened(self._progress)
        budget = (1 - share) * 1.01 * self._whole + share * target
        return multiplier(volume, target - MARGIN * self._whole, budget)

    def after_step(self, step: Step) -> None:
        """Move the gates."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._progress = step.progress

    def worth(self) -> Tensor:
        """The probability that a gate is above zero, which ties less than the gates do."""
        return alive(self.numbers)

    def detach(self) -> None:
        """Write the gates down and let the teacher go."""
        super().detach()
        self._teacher = None


def _values(gates: Gates) -> Tensor:
    phi = gates.get_parameter("learned")
    if not gates.training:
        return stretched(phi.sigmoid())
    # Exactly 0 may be drawn, and its logarithm would be infinite.
    tiny = torch.finfo(phi.dtype).tiny
    return drawn(phi, torch.rand_like(phi).clamp_min(tiny))


def areas_of(graph: Graph) -> list[float]:
    """Per group how many numbers one channel has in the feature maps that layers read."""
    taps: dict[int, list[tuple[int, Tap]]] = {}
    for number, group in enumerate(graph.groups):
        for tap in group.taps:
            taps.setdefault(tap.site, []).append((number, tap))
    areas = [0.0] * len(graph.groups)
    batch = batch_size(graph.inputs)

    def visit(site: int, activation: Tensor) -> None:
        for number, tap in taps[site]:
            places = activation.numel() / activation.shape[tap.dim] / batch
            areas[number] += places * tap.index.shape[1]

    read_activations(graph.model, graph.inputs, taps, visit)
    return areas


METHOD = Bar
