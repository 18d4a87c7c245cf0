"""SSS: a factor per channel is trained towards zero, and many reach it exactly.

Paper: Huang, Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018,
https://arxiv.org/abs/1707.01213.

Every channel is multiplied with a factor lam that starts at 1, and training minimises
loss + penalty * sum |lam|. The factors move by accelerated proximal gradient, with the learning
rate lr of the weights, momentum m, and v starting at 0:

    z = soft(lam - lr * gradient, lr * penalty),  v <- z - lam + m * v,  lam <- max(0, z + m * v)

where soft(x, a) = sign(x) * max(|x| - a, 0). A channel whose factor is 0 is silent: scale and
shift are multiplied, or filter and bias where there is no batch norm. After training the factors
are multiplied into those parameters, so a channel is scored by its size with the factor in it:

    score_c = lam_c * |gamma_c|, the mean over the batch norms of a group,
    score_c = |lam_c * filter c| over the mean of the group's, where there are none

which is 0 where lam is, and needs no training to be read: all factors are 1 before it.

With structure: block the factors belong to residual blocks: one each, on what the branch adds.
A block whose factor is 0 is replaced by its shortcut. A block is scored by the mean of |weight| of
the layer that its branch ends with (a batch norm's scale, or a convolution), the factor in it.

The paper trains from scratch, with weight decay on the weights only. Differs from it: what remains
there are channels and blocks with lam > 0, here the budget decides how many; so those above 0
must be ranked, for which the paper has no rule (lam alone would leave out that gamma can make up
for it). Our penalty of 0.001 is for channels; the authors' for blocks of ResNet-50 is 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.channels.blocks import Block
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.blocks import require_blocks
from prune2deploy.methods.common.gates import BlockLayout, Gates, Layout
from prune2deploy.methods.common.readings import relative_norms, require_some, scales


def soft_threshold(values: Tensor, by: float) -> Tensor:
    """Return values moved towards zero by `by`, and zero where they would pass it."""
    return values.sign() * (values.abs() - by).clamp_min(0.0)


def proximal_step(
    factors: Tensor, velocity: Tensor, gradient: Tensor, lr: float, penalty: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """Do one accelerated proximal step.

    Args:
        factors, velocity, gradient: shape (channels,).

    Returns:
        The new factors, >= 0, and the new velocity.
    """
    near = soft_threshold(factors - lr * gradient, lr * penalty)
    velocity = near - factors + momentum * velocity
    return (near + momentum * velocity).clamp_min(0.0), velocity


class SssOptions(MethodOptions):
    """Options of SSS."""

    penalty: float = Field(
        0.001, ge=0, description="Weight of the factors' sum. Raise it until factors reach zero."
    )
    structure: Literal["channel", "block"] = Field(
        "channel", description="What has a factor: channels, or residual blocks as wholes."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the factors.")


class Sss(Method[SssOptions]):
    """Batch-norm scales with factors that training brings to exactly zero."""

    name = "sss"
    summary = "scale with a factor that training brings to exactly zero"
    source = (
        "Huang, Wang: Data-Driven Sparse Structure Selection for Deep Neural Networks, "
        "ECCV 2018, https://arxiv.org/abs/1707.01213"
    )
    cost = "one training run"
    options = SssOptions
    needs_training = True
    normalisation = "none"  # one penalty over the whole network, on factors that start alike

    _gates: Gates | None = None
    _velocity: Tensor | None = None

    def attach(self, graph: Graph) -> None:
        """Give every channel, or block, that can go a factor of 1."""
        layout: Layout | BlockLayout = Layout(graph, "made")
        if self.removes_blocks:
            layout = BlockLayout(graph.model, require_blocks(graph, self.name))
        start = {"factor": torch.ones(layout.size, device=_device(graph.model))}
        self._gates = Gates(
            graph, start, lambda gates: gates.get_parameter("factor"), layout=layout
        )
        self._velocity = None

    def own_parameters(self) -> tuple[nn.Parameter, ...]:
        """The factors."""
        return () if self._gates is None else (self._gates.get_parameter("factor"),)

    def after_step(self, step: Step) -> None:
        """Move the factors."""
        for factor in self.own_parameters():
            if factor.grad is None:
                continue
            now = factor.detach()
            velocity = torch.zeros_like(now) if self._velocity is None else self._velocity
            moved, self._velocity = proximal_step(
                now, velocity, factor.grad, step.lr, self.settings.penalty, self.settings.momentum
            )
            now.copy_(moved)
            factor.grad = None

    def detach(self) -> None:
        """Multiply the factors into the weights."""
        if self._gates is not None:
            self._gates.fold()
        self._gates = self._velocity = None

    def score(self, context: Context) -> list[Tensor | None]:
        """Size of a channel with its factor: mean |gamma| of its norms, or its filters' norm."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            norms = [gamma.abs().mean(dim=1) for gamma in scales(context, group)]
            if norms:
                scores.append(torch.stack(norms).mean(dim=0))
                continue
            scores.append(relative_norms(context, group))
        return require_some(scores, self.name, "no batch norm or layer with weights makes them")

    @property
    def removes_blocks(self) -> bool:
        """With structure: block."""
        return self.settings.structure == "block"

    def score_blocks(self, context: Context, blocks: Sequence[Block]) -> Tensor:
        """Size of what ends each branch, its factor in it: the mean of |weight|."""
        weights = [context.tensor(f"{block.last}.weight") for block in blocks]
        return torch.stack([weight.abs().mean() for weight in weights])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


METHOD = Sss
