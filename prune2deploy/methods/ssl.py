"""SSL: filters, and the weights that read a channel, are pulled towards zero as wholes.

Paper: Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks",
NeurIPS 2016, https://arxiv.org/abs/1608.03665 (filters, channels and depth).

Training minimises, over the layers l that make or read channels that can go,

    loss + penalty * sum_l sum_c sqrt(n_l) * |W_l[c]| + read_penalty * sum_l sum_c
        sqrt(m_l) * |W_l[:, c]|

with |.| the root of the summed squares, n_l weights in a filter and m_l weights that read one
channel. Every layer's filter is a vector of its own, as is every layer's slice.

A channel is as good as gone when nothing makes it or nothing reads it, so both are multiplied:
score_c = sqrt(|made_c| * |read_c|), each over all layers of the group (a residual channel goes
only when all that make it are zero). That is also the same when a layer is scaled up and the
next one down. Behind a batch norm a filter of zeros leaves a constant, until the statistics are
renewed or the network is trained on; a channel that nothing reads leaves nothing.

With proximal the norms are not part of the loss; instead each vector is shrunk after a step with
learning rate lr, w <- w * max(0, 1 - lr * strength / |w|), first filters and then slices, with
the strengths from above. Only so do vectors become exactly zero.

With structure: block the vectors are residual blocks, the weights of all their layers in one: the
paper's regularization of depth. A block is scored by the root mean square of these weights, and
the lowest are replaced by their shortcuts.

Differs from the paper: shapes of filters are not penalised; single weights
below 1e-4 are not zeroed, and weight decay stays on, unless the recipe takes it away. The paper
starts from trained weights with a tenth of their learning rate. Penalties and their factor
sqrt(n), the mean of the two sides, and the proximal step are ours. A filter behind a batch norm
that has shrunk far is thrown about by its next gradient, so more is not always better: over the
training lr * penalty * sqrt(n) should add up to about the norm of a filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role, Slot
from prune2deploy.channels.blocks import Block
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.blocks import require_blocks
from prune2deploy.methods.common.readings import (
    by_channel,
    filters,
    require_some,
    rows,
    weight_slots,
)


def norms(vectors: Tensor) -> Tensor:
    """Root of the summed squares of each row; the gradient of a row of zeros is zero, not NaN.

    Args:
        vectors: shape (channels, entries).

    Returns:
        Shape (channels,).
    """
    squares = vectors.square().sum(dim=1)
    alive = squares > 0
    return torch.where(alive, torch.where(alive, squares, 1.0).sqrt(), 0.0)


def shrinkage(found: Tensor, by: float) -> Tensor:
    """Return what a proximal step multiplies vectors with: max(0, 1 - by / norm).

    Args:
        found: norms of the vectors, shape (channels,).
    """
    return torch.where(found > by, 1 - by / torch.where(found > by, found, 1.0), 0.0)


class SslOptions(MethodOptions):
    """Options of SSL."""

    penalty: float = Field(
        1e-4, ge=0, description="Weight of the filters' norms, times the root of their size."
    )
    read_penalty: float = Field(
        1e-4,
        ge=0,
        description="Weight of the norms of what reads a channel, times the root of their size.",
    )
    structure: Literal["channel", "block"] = Field(
        "channel", description="What goes: channels, or residual blocks as wholes (depth)."
    )
    proximal: bool = Field(
        False, description="Shrink after each step, to exactly zero, instead of adding to the loss."
    )


class Ssl(Method[SslOptions]):
    """Norms of the weights that make and that read a channel, penalised in training."""

    name = "ssl"
    summary = "norms of what makes and what reads a channel, both penalised in training"
    source = (
        "Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in Deep Neural Networks, "
        "NeurIPS 2016, https://arxiv.org/abs/1608.03665"
    )
    cost = "one training run"
    options = SslOptions
    needs_training = True

    _model: nn.Module | None = None
    _strengths: tuple[tuple[Slot, float], ...] = ()
    _blocks: tuple[list[nn.Parameter], ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the weights that make and read channels that can go."""
        self._model = graph.model
        if self.removes_blocks:
            blocks = require_blocks(graph, self.name)
            self._blocks = tuple(_weights_of(graph.model, block) for block in blocks)
            return
        penalties = {
            Role.PRODUCER: self.settings.penalty,
            Role.CONSUMER: self.settings.read_penalty,
        }
        self._strengths = tuple(
            (slot, penalty * math.sqrt(_entries(graph, slot)))
            for role, penalty in penalties.items()
            for group in graph.groups
            for slot in weight_slots(graph, group, role)
        )

    def extra_loss(self) -> Tensor | None:
        """The sum of all norms, weighted; None where they are shrunk instead."""
        if self._model is None or self.settings.proximal:
            return None
        if self._blocks:
            strength = self.settings.penalty
            wholes = [strength * math.sqrt(n) * norms(v) for v, n in map(_joined, self._blocks)]
            return torch.cat(wholes).sum()
        if not self._strengths:
            return None
        model = self._model
        sums = [
            strength * norms(rows(model.get_parameter(slot.tensor), slot)).sum()
            for slot, strength in self._strengths
        ]
        return torch.stack(sums).sum()

    def after_step(self, step: Step) -> None:
        """Shrink all vectors, if they are not penalised in the loss."""
        if self._model is None or not self.settings.proximal:
            return
        with torch.no_grad():
            for weights in self._blocks:
                vector, entries = _joined(weights)
                by = step.lr * self.settings.penalty * math.sqrt(entries)
                for weight in weights:
                    weight.mul_(shrinkage(norms(vector), by))
            for slot, strength in self._strengths:
                weight = self._model.get_parameter(slot.tensor)
                factor = shrinkage(norms(rows(weight, slot)), step.lr * strength)
                weight.mul_(by_channel(factor, slot, weight, 1.0))

    def score(self, context: Context) -> list[Tensor | None]:
        """Geometric mean of the norms of what makes and what reads a channel, per group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            slots = weight_slots(context.graph, group, Role.CONSUMER)
            read = [rows(context.tensor(slot.tensor), slot) for slot in slots]
            if not all(part.isfinite().all() for part in read):
                raise MethodError(
                    f"The weights that read '{group.name}' hold NaN or inf. Check the checkpoint."
                )
            sides = [norms(torch.cat(side, 1)) for side in (filters(context, group), read) if side]
            scores.append(_geometric_mean(sides) if sides else None)
        return require_some(scores, self.name, "no layer with weights makes or reads them")

    @property
    def removes_blocks(self) -> bool:
        """With structure: block."""
        return self.settings.structure == "block"

    def score_blocks(self, context: Context, blocks: Sequence[Block]) -> Tensor:
        """Root mean square of the weights of each block's layers."""
        found = [_joined(_weights_of(context.model, block)) for block in blocks]
        return torch.cat([norms(vector.detach()) / math.sqrt(n) for vector, n in found])


def _weights_of(model: nn.Module, block: Block) -> list[nn.Parameter]:
    """Weights of the block's convolutions and linear layers."""
    return [p for p in model.get_submodule(block.name).parameters() if p.dim() > 1]


def _joined(weights: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Weights as one vector of shape (1, entries), and how many entries."""
    vector = torch.cat([weight.flatten() for weight in weights])[None]
    return vector, vector.shape[1]


def _entries(graph: Graph, slot: Slot) -> int:
    """How many weights of a parameter belong to one channel."""
    shape = graph.shapes[slot.tensor]
    return math.prod(shape) // shape[slot.dim] * int(slot.index.shape[1])


def _geometric_mean(sides: list[Tensor]) -> Tensor:
    return torch.stack(sides).prod(dim=0) ** (1 / len(sides))


METHOD = Ssl
