"""GBN: what the loss would change, to first order, if a batch norm's gate were zero.

Paper: You, Yan, Ye, Ma, Wang, "Gate Decorator: Global Filter Pruning Method for Accelerating Deep
Convolutional Neural Networks", NeurIPS 2019, https://arxiv.org/abs/1909.08174.

A batch norm is rewritten as g * (normalised + b) with the gate g = gamma and b = beta / gamma, so
that a channel whose gate is zero is silent. Tock, the training with hooks, minimises
loss + penalty * sum |g| over the gates of channels that can go; b is clamped to +-10 when it
begins. Tick, the score, adds up over batches

    score_c = sum over batches of |g_c * dL/dg_c| = |gamma_c * dL/dgamma_c + beta_c * dL/dbeta_c|

which is exact for each batch without rewriting anything, so `score` also works on a network that
was trained in another way. Gates of norms that share channels add their scores. With cost_weight
the score is less for channels that cost much:

    score_c - cost_weight * mean score * cost_c

where cost_c are the multiply-accumulates that go with the channel, over the mean of all channels
(the authors' code takes the area of the map times the channels of the neighbours, not scaled).

The paper's rounds of tick and tock are, in a recipe, `train` (tock) and an iterative schedule
with training between its rounds; its tock takes 10 epochs with a learning rate from 1e-3 to 1e-2
and back, and ten ticks, each a pass over the data, remove 0.5% of the channels each. Differs from
it: a tick there also trains gates, shifts and the last layer for its pass, here it only looks,
at batches with the statistics of the norms fixed and without dropout; and in the copies of a
channel behind a flatten, which are gates of their own there, changes are added with their sign.
Where |beta / gamma| is above 10, as with a constant channel (gamma 0), the clamp changes the
network when tock begins, and training must make up for it. Channels without a batch norm are
kept whole.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.gates import ScaledNorm, scaled_norms
from prune2deploy.methods.common.readings import require_some
from prune2deploy.methods.rsnli import relative_costs
from prune2deploy.methods.taylor import changes

LIMIT = 10.0
"""The shift b of a gate starts between -LIMIT and LIMIT."""


def with_costs(scores: list[Tensor], costs: list[float], weight: float) -> list[Tensor]:
    """Return the scores less weight * mean score * cost.

    Args:
        scores: per group shape (channels,), >= 0. costs: per group that of a channel.
    """
    if not scores:
        return scores
    mean = torch.cat(scores).mean()
    return [score - weight * mean * cost for score, cost in zip(scores, costs, strict=True)]


class GbnOptions(MethodOptions):
    """Options of GBN."""

    penalty: float = Field(1e-3, ge=0, description="Weight of the sum of |gate| in training.")
    images: int = Field(
        2560, ge=1, description="Training images whose loss is looked at; the paper's are all."
    )
    batch_size: int = Field(
        128, ge=1, description="Images per batch; the size of each batch's change is added."
    )
    cost_weight: float = Field(
        0.0,
        ge=0,
        description="How far cost lowers a score: in mean scores for a channel of mean cost.",
    )


class Gbn(Method[GbnOptions]):
    """First-order change of the loss without the gate, after training that shrinks gates."""

    name = "gbn"
    summary = "change of the loss, to first order, without its gate, shrunk in training"
    source = (
        "You, Yan, Ye, Ma, Wang: Gate Decorator: Global Filter Pruning Method for Accelerating "
        "Deep Convolutional Neural Networks, NeurIPS 2019, https://arxiv.org/abs/1909.08174"
    )
    cost = "several training runs"
    options = GbnOptions
    needs_training = True
    needs_data = True
    needs_losses = True
    normalisation = "none"  # all are changes of the same loss

    _norms: tuple[ScaledNorm, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Rewrite the batch norms of channels that can go."""
        self._norms = tuple(scaled_norms(graph, LIMIT))

    def extra_loss(self) -> Tensor | None:
        """penalty * sum of |g| over the gates."""
        sums = [scaled.norm.weight[scaled.gated].abs().sum() for scaled in self._norms]
        return self.settings.penalty * torch.stack(sums).sum() if sums else None

    def detach(self) -> None:
        """Turn the batch norms back into plain ones."""
        for scaled in self._norms:
            scaled.fold()
        self._norms = ()

    def score(self, context: Context) -> list[Tensor | None]:
        """Sum over batches and norms of the size of the change, per group."""
        graph, settings = context.graph, self.settings
        gates = [(n, slots) for n, group in enumerate(graph.groups) for slots in _gates(group)]
        totals = {n: torch.zeros(graph.groups[n].size, dtype=torch.float64) for n, _ in gates}
        slots_of_gates = [slots for _, slots in gates]
        for batch in changes(
            context, slots_of_gates, settings.images, settings.batch_size, self.name
        ):
            for (number, _), change in zip(gates, batch, strict=True):
                totals[number] += change.abs()
        if settings.cost_weight and totals:
            costs = relative_costs(graph)
            lowered = with_costs(
                list(totals.values()), [costs[n] for n in totals], settings.cost_weight
            )
            totals = dict(zip(totals, lowered, strict=True))
        scores = [totals.get(n) for n in range(len(graph.groups))]
        return require_some(scores, self.name, "none has a batch norm with a scale")


def _gates(group: Group) -> list[list[Slot]]:
    """Scale and shift of each batch norm of the group."""
    norms: dict[str, list[Slot]] = {}
    for slot in group.of_role(Role.SCALE) + group.of_role(Role.SHIFT):
        norms.setdefault(slot.tensor.rpartition(".")[0], []).append(slot)
    return list(norms.values())


METHOD = Gbn
