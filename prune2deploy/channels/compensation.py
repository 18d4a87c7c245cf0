"""What removed channels gave on average, given on by the layers that read them.

A channel that is removed takes sum over the kernel of W[o, c] * x_c from every output o of a layer
that reads it. Where x_c is constant, as behind a batch norm whose scale is zero, a bias makes up
for it exactly, but for the rim that a convolution pads with zeros; else it makes up for the mean.
A layer without a bias that has a batch norm right behind it gets it there, as another mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy.channels.activations import Contraction, read_contractions, reading_sites
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import IndexTable
from prune2deploy.channels.norm_links import norm_behind


def compensate(graph: Graph, kept: Sequence[IndexTable], images: Iterable[Tensor]) -> list[str]:
    """Change biases and means of graph.model, in place, for the channels that will be removed.

    Args:
        kept: per group the channels that stay.
        images: batches as the model takes them.

    Returns:
        Names of weights whose layer has neither a bias nor a batch norm right behind it, and so
        does without.
    """
    readers = reading_sites(graph)
    parameter_of = {site: some[0][1] for site, some in readers.items()}
    sums: dict[int, Tensor] = {}
    entries: dict[int, int] = {}
    layers: dict[int, tuple[Tensor, int]] = {}

    def visit(site: int, layer: Contraction) -> None:
        found = layer.read.double().flatten(2) if layer.read.dim() > 2 else layer.read[..., None]
        total = found.double().sum(dim=(0, 2))
        sums[site] = sums.get(site, torch.zeros_like(total)) + total
        entries[site] = entries.get(site, 0) + found.shape[0] * found.shape[2]
        layers[site] = (layer.weight.detach(), layer.groups)

    for batch in images:
        read_contractions(graph.model, batch, readers, visit)
    links = norm_behind(graph.model, graph.inputs)
    without = []
    for site, (weight, groups) in layers.items():
        gone = torch.zeros_like(sums[site], dtype=torch.bool)
        for number, _, index in readers[site]:
            removed = torch.ones(len(index), dtype=torch.bool)
            removed[torch.from_numpy(kept[number])] = False
            gone[torch.from_numpy(index)[removed].flatten().to(gone.device)] = True
        if not gone.any():
            continue
        shift = lost(weight, torch.where(gone, sums[site] / entries[site], 0.0), groups)
        if not _give(graph.model, parameter_of[site], shift, links):
            without.append(parameter_of[site])
    return without


def lost(weight: Tensor, means: Tensor, groups: int = 1) -> Tensor:
    """Return what each output loses on average.

    Args:
        weight: shape (outputs, inputs / groups, *kernel).
        means: of the inputs that go, zero for those that stay; shape (inputs,).

    Returns:
        Shape (outputs,), float64.
    """
    through = weight.double().flatten(2).sum(dim=2) if weight.dim() > 2 else weight.double()
    parts = through.view(groups, -1, through.shape[1]) * means.double().view(groups, 1, -1)
    result: Tensor = parts.sum(dim=2).flatten()
    return result


@torch.no_grad()
def _give(model: nn.Module, weight: str, shift: Tensor, links: dict[str, str | None]) -> bool:
    """Add the shift to the layer's bias, or take it from the mean of the norm behind it."""
    name = weight.rpartition(".")[0]
    bias = getattr(model.get_submodule(name), "bias", None)
    if isinstance(bias, Tensor) and bias.shape == shift.shape:
        bias.add_(shift.to(bias))
        return True
    norm = links.get(name)
    behind = None if norm is None else model.get_submodule(norm)
    if isinstance(behind, _BatchNorm) and isinstance(behind.running_mean, Tensor):
        behind.running_mean.sub_(shift.to(behind.running_mean))
        return True
    return False
