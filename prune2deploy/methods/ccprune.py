"""CCPrune: filter and batch-norm scale are penalised together and judged together.

Paper: Chen, Wen, Zhang, Shi, "CCPrune: Collaborative channel pruning for learning
compact convolutional networks", Neurocomputing 2021,
https://doi.org/10.1016/j.neucom.2021.04.063.

Training minimises loss + weight_penalty * sum |W| + gamma_penalty * sum |gamma|; the
paper then ranks all channels globally, prunes a slice, retrains, and repeats until the
target (in a recipe: schedule kind iterative).

Differs from the paper: its formula for combining the two and its penalties could not be
verified. Here score_c = mean |W[c]| * |gamma_c|; the mean rather than the sum, because
with a batch norm behind it the scale of W changes nothing in the function, and a layer's
fan-in must not decide. combine: sum adds the two, each divided by its layer's largest.
layer_norm divides by the layer's largest so that layers can be ranked together.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import filters, require_some, scales


def score(
    weight: Tensor, gamma: Tensor, combine: Literal["product", "sum"], layer_norm: bool
) -> Tensor:
    """Combine a layer's filters with their batch-norm scales.

    Args:
        weight: shape (channels, ...), one row per filter. Not modified.
        gamma: shape (channels,). Not modified.
        combine: product of mean |W[c]| and |gamma_c|, or sum of both after division
            by the layer's largest.
        layer_norm: divide the result by the layer's largest.

    Returns:
        Shape (channels,), >= 0; with layer_norm in [0, 1].
    """
    size = weight.abs().flatten(1).mean(dim=1)
    scale = gamma.abs()
    both = size * scale if combine == "product" else _by_largest(size) + _by_largest(scale)
    return _by_largest(both) if layer_norm else both


def _by_largest(values: Tensor) -> Tensor:
    largest = values.max()
    return values / largest if largest > 0 else values


class CCPruneOptions(MethodOptions):
    """Options of CCPrune."""

    weight_penalty: float = Field(
        1e-5, ge=0, description="Weight of the L1 penalty on convolution weights."
    )
    gamma_penalty: float = Field(
        1e-4, ge=0, description="Weight of the L1 penalty on batch-norm scales."
    )
    combine: Literal["product", "sum"] = Field(
        "product", description="How a filter's size and its batch-norm scale become one score."
    )
    layer_norm: bool = Field(
        True,
        description="Divide scores by their layer's largest, so that layers can be compared.",
    )


class CCPrune(Method[CCPruneOptions]):
    """Filter size and batch-norm scale together, both penalised in training."""

    name = "ccprune"
    summary = "filter size and batch-norm scale together, both penalised in training"
    source = (
        "Chen, Wen, Zhang, Shi: CCPrune: Collaborative channel pruning for learning compact "
        "convolutional networks, Neurocomputing 2021, "
        "https://doi.org/10.1016/j.neucom.2021.04.063"
    )
    cost = "several training runs"
    options = CCPruneOptions
    needs_training = True
    normalisation = "none"  # layer_norm already makes layers comparable

    _weights: tuple[nn.Parameter, ...] = ()
    _gammas: tuple[nn.Parameter, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the weights and scales of channels that can go."""
        weights: dict[str, None] = {}
        gammas: dict[str, None] = {}
        for group in graph.groups:
            for slot in group.of_role(Role.PRODUCER):
                if len(graph.shapes[slot.tensor]) > 2:
                    weights[slot.tensor] = None
            gammas.update({s.tensor: None for s in group.of_role(Role.SCALE)})
        self._weights = tuple(graph.model.get_parameter(n) for n in weights)
        self._gammas = tuple(graph.model.get_parameter(n) for n in gammas)

    def extra_loss(self) -> Tensor | None:
        """weight_penalty * sum |W| + gamma_penalty * sum |gamma|."""
        terms = [w.abs().sum() * self.settings.weight_penalty for w in self._weights]
        terms += [g.abs().sum() * self.settings.gamma_penalty for g in self._gammas]
        return torch.stack(terms).sum() if terms else None

    def score(self, context: Context) -> list[Tensor | None]:
        """Add the combined scores of the layers that produce a group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            weights = filters(context, group)
            gammas = [g.abs().mean(dim=1) for g in scales(context, group)]
            if not weights or not gammas:
                scores.append(None)
                continue
            if len(weights) != len(gammas):
                # Layers and norms do not pair up (a norm shared by two layers): judge each
                # layer with the mean scale of its channels.
                gammas = [torch.stack(gammas).mean(dim=0)] * len(weights)
            parts = [
                score(w, g, self.settings.combine, self.settings.layer_norm)
                for w, g in zip(weights, gammas, strict=True)
            ]
            scores.append(sum(parts[1:], start=parts[0]))
        return require_some(scores, self.name, "none has a convolution with a batch norm")


METHOD = CCPrune
