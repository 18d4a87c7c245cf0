"""Torch-Pruning at a share of the MACs, as its README uses it: L1 norms, one ratio for all layers.

The ratio is found by halving, since its own MACs follow from the rounded widths. `round_to` is
its option; a convolution's classes stay.
"""

from __future__ import annotations

import copy

import torch
import torch_pruning as tp
from torch import nn

from prune2deploy.channels import trace

_HALVINGS = 10


def pruned_to(model: nn.Module, image: torch.Tensor, macs: float, round_to: int) -> nn.Module:
    """A copy whose share of the MACs is the largest of those at most `macs`.

    Raises:
        RuntimeError: no ratio gives so few.
    """
    low, high = 0.0, 1.0
    found = None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        small = _pruned(model, image, ratio, round_to)
        if macs_of(small, image) <= macs * macs_of(model, image):
            found, high = small, ratio
        else:
            low = ratio
    if found is None:
        raise RuntimeError(f"no ratio gives {macs:.0%} of the MACs")
    return found


def macs_of(model: nn.Module, image: torch.Tensor) -> int:
    """Counted by ours, for both tools alike."""
    graph = trace(model, image)
    return graph.cost.macs(graph.full)


def _pruned(model: nn.Module, image: torch.Tensor, ratio: float, round_to: int) -> nn.Module:
    small = copy.deepcopy(model)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    last = [m for m in small.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.MagnitudePruner(
        small,
        image,
        tp.importance.MagnitudeImportance(p=1),
        global_pruning=False,
        pruning_ratio=ratio,
        round_to=round_to,
        ignored_layers=last,
        # Given in full, as its defaults are one dict for all pruners of a process.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    return small.eval()
