"""VCNNP: gates are drawn from a normal distribution that is learned; those around zero go.

Paper: Zhao, Ni, Zhang, Zhao, Zhang, Tian, "Variational Convolutional Neural Network Pruning",
CVPR 2019, https://doi.org/10.1109/CVPR.2019.00289.

A batch norm is rewritten as g * (normalised + b), so that the gate g scales the shift too and a
channel with g = 0 is silent. In training g is drawn anew in every forward pass, one number per
channel of each norm: g = mu + sigma * noise, noise ~ Normal(0, 1). Training minimises

    loss + penalty * KL,   KL = sum over channels that can go of mu^2 / (2 sigma^2)

the divergence from a prior around zero whose variance is matched to sigma^2; its gradient draws
mu towards zero. mu starts as gamma, b as beta / gamma clamped to +-10, sigma as the option says.
KL alone could also be made small by letting sigma grow, so sigma is held at its first value or
below. In eval mode g = mu, and after training gamma = mu and beta = mu * b: a plain batch norm.

    score_c = |mu_c| / max(sigma_c, 0.01), the mean over the batch norms of a group

says how far from zero a gate is, in its own standard deviations. The published rule removes
channels with |mu| < 0.02 and sigma < 0.01: all of those score below 2, and so do gates that lie
within two standard deviations of zero. (The 0.01 is the rule's; without it a gate that is surely
zero, with a tiny sigma, would score high.) A network that was not trained with the hooks has
sigma as it starts, and the score ranks by |gamma|.

The paper was not to be had in full: prior and the weight of KL are recalled (1 over the number
of training images, here CIFAR's 50,000), the rule and the rewritten norm are those of a
re-implementation, whose KL has the wrong sign. Differs from it, too: log sigma^2 moves without
weight decay, which would raise sigma; and where |beta / gamma| is above 10 the clamp changes the
network when training begins. Norms that are no modules of torch are not gated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune2deploy.channels import Graph, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, IndexTable, Method, MethodOptions, Step
from prune2deploy.methods.common.gates import ScaledNorm, scaled_norms
from prune2deploy.methods.common.readings import require_some, rows

LIMIT = 10.0
"""The shift b of a gate starts between -LIMIT and LIMIT."""
NARROW = 0.01
"""Sigmas below this tell gates no further apart."""


def divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL of each gate from the prior: mu^2 / (2 sigma^2), shape as given."""
    return mu.square() / (2 * log_variance.exp())


def distance_from_zero(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return |mu| in standard deviations of at least NARROW; shape as given."""
    return mu.abs() / sigma.clamp_min(NARROW)


def published_rule(mu: Tensor, sigma: Tensor) -> Tensor:
    """Whether the published thresholds would remove a channel; shape as given."""
    return (mu.abs() < 0.02) & (sigma < NARROW)


class VcnnpOptions(MethodOptions):
    """Options of VCNNP."""

    penalty: float = Field(
        2e-5, ge=0, description="Weight of the KL divergence: 1 over the number of images."
    )
    sigma: float = Field(
        0.1, gt=0, le=1, description="Standard deviation that gates start with, and at most have."
    )


class Vcnnp(Method[VcnnpOptions]):
    """Distance from zero of gates that are normally distributed."""

    name = "vcnnp"
    summary = "distance of its random gate from zero, in standard deviations"
    source = (
        "Zhao, Ni, Zhang, Zhao, Zhang, Tian: Variational Convolutional Neural Network Pruning, "
        "CVPR 2019, https://doi.org/10.1109/CVPR.2019.00289"
    )
    cost = "one training run"
    options = VcnnpOptions
    needs_training = True
    normalisation = "none"  # standard deviations are the same unit everywhere

    _norms: tuple[tuple[ScaledNorm, _Sampled], ...] = ()
    _optimizer: torch.optim.Optimizer | None = None

    def __init__(self, settings: VcnnpOptions) -> None:
        super().__init__(settings)
        self._sigmas: dict[str, Tensor] = {}
        """By the name of a norm's scale, as the last training left them."""

    def attach(self, graph: Graph) -> None:
        """Rewrite the batch norms of channels that can go, with gates that are drawn."""
        self._norms = tuple(
            (scaled, _Sampled(scaled, self.settings.sigma)) for scaled in scaled_norms(graph, LIMIT)
        )
        self._optimizer = torch.optim.SGD(self.own_parameters(), lr=1.0, momentum=0.9)

    def own_parameters(self) -> tuple[nn.Parameter, ...]:
        """log sigma^2 of every norm."""
        return tuple(sampled.log_variance for _, sampled in self._norms)

    def extra_loss(self) -> Tensor | None:
        """penalty * KL over the gates of all norms."""
        sums = [
            divergence(sampled.mu, sampled.log_variance)[scaled.gated].sum()
            for scaled, sampled in self._norms
        ]
        return self.settings.penalty * torch.stack(sums).sum() if sums else None

    def after_step(self, step: Step) -> None:
        """Move log sigma^2, and keep sigma at most what it was at first."""
        if self._optimizer is None:
            return
        self._optimizer.param_groups[0]["lr"] = step.lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for parameter in self.own_parameters():
                parameter.clamp_(max=2 * math.log(self.settings.sigma))

    def detach(self) -> None:
        """Leave plain batch norms with the means as scales, and remember the sigmas."""
        for scaled, sampled in self._norms:
            self._sigmas[scaled.name] = (sampled.log_variance.detach() / 2).exp()
            sampled.fold()
            scaled.fold()
        self._norms = ()
        self._optimizer = None

    def before_cut(self, context: Context, kept: Sequence[IndexTable]) -> None:
        """Forget the sigmas of channels that go, for the score of the next round."""
        stays = {name: torch.ones(len(s), dtype=torch.bool) for name, s in self._sigmas.items()}
        for group, channels in zip(context.graph.groups, kept, strict=True):
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[torch.from_numpy(channels)] = False
            for slot in group.of_role(Role.SCALE):
                if slot.tensor in stays:
                    entries = torch.from_numpy(slot.index)[gone].reshape(-1)
                    stays[slot.tensor][entries] = False
        for name, stay in stays.items():
            self._sigmas[name] = self._sigmas[name][stay.to(self._sigmas[name].device)]

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean distance from zero over the batch norms of a group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = [self._distance(context, slot) for slot in group.of_role(Role.SCALE)]
            scores.append(torch.stack(parts).mean(dim=0) if parts else None)
        return require_some(scores, self.name, "none has a batch norm with a scale")

    def _distance(self, context: Context, slot: Slot) -> Tensor:
        mu = context.tensor(slot.tensor)
        sigma = self._sigmas.get(slot.tensor, torch.full_like(mu, self.settings.sigma))
        if len(sigma) != len(mu):
            raise MethodError(
                f"vcnnp was trained when '{slot.tensor}' had {len(sigma)} channels, and now it has "
                f"{len(mu)}. Score the network that was trained, or train this one with the hooks."
            )
        return distance_from_zero(rows(mu, slot), rows(sigma.to(mu), slot)).mean(dim=1)


class _Sampled(nn.Module):
    """The scale of a batch norm, drawn anew whenever the norm runs in train mode."""

    def __init__(self, scaled: ScaledNorm, sigma: float) -> None:
        super().__init__()
        norm = scaled.norm
        self._scaled = (scaled,)
        self._noise: Tensor | None = None
        start = torch.full_like(norm.weight.detach(), 2 * math.log(sigma))
        self.log_variance = nn.Parameter(start)
        parametrize.register_parametrization(norm, "weight", self)
        self._handles = (
            norm.register_forward_pre_hook(self._draw),
            norm.register_forward_hook(self._forget, always_call=True),
        )

    @property
    def mu(self) -> Tensor:
        """The means, which are trained in place of the scale."""
        found = self._scaled[0].norm.get_submodule("parametrizations.weight").original
        assert isinstance(found, Tensor)
        return found

    def forward(self, mu: Tensor) -> Tensor:
        """The gates: of the pass that is running, or in eval mode the means."""
        return mu if self._noise is None else mu + (self.log_variance / 2).exp() * self._noise

    def _draw(self, norm: nn.Module, inputs: Any) -> None:
        if norm.training:
            # Drawn here and not in forward, for scale and shift read the same gate.
            self._noise = torch.randn_like(self.log_variance) * self._scaled[0].gated

    def _forget(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        self._noise = None

    def fold(self) -> None:
        """Make the means the scale."""
        for handle in self._handles:
            handle.remove()
        parametrize.remove_parametrizations(self._scaled[0].norm, "weight")


METHOD = Vcnnp
