"""Small networks and the checks on them that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.channels import Graph, Group, Plan, cut, mask, trace
from prune2deploy.channels.groups import IndexTable
from prune2deploy.channels.reference import run_reference


class Net(nn.Module):
    """A module whose forward is a function of (net, *inputs); its parts are given by name."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(self, *inputs, **named)


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution, 1×1 unless a size is given."""
    return nn.Conv2d(inputs, outputs, size, **options)


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random statistics, scales and shifts; returns the model."""
    random = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=random) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
            module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -0.3, 0.3))
    return model


def random_kept(groups: Sequence[Group], seed: int = 0) -> list[IndexTable]:
    """Between one and all but one of each group's channels, at random."""
    random = np.random.default_rng(seed)
    return [
        np.sort(random.choice(g.size, random.integers(1, g.size), replace=False)) for g in groups
    ]


def counts(kept: Sequence[IndexTable]) -> IndexTable:
    """How many channels of each group are kept."""
    return np.array([len(k) for k in kept], dtype=np.int64)


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's answer in eval mode, without gradients."""
    model.eval()
    with torch.no_grad():
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one forward pass as PyTorch's own counter sees them."""
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    return counter.get_total_flops() // 2


def assert_cut_is_exact(
    model: nn.Module, inputs: Any, graph: Graph, plan: Plan, normalised: bool = False
) -> nn.Module:
    """Cut and mask give the same numbers, to 1e-5 of the largest; returns the cut model.

    normalised: whether a cut dimension is normalised or averaged over; zeros would count there,
        so the reference leaves them out.
    """
    small = cut(model, plan)
    got = run(small, inputs)
    model.eval()
    want = run_reference(model, plan, inputs) if normalised else run(mask(model, plan), inputs)
    pairs = [(got, want)] if isinstance(got, Tensor) else list(zip(got, want, strict=True))
    for a, b in pairs:
        assert a.shape == b.shape
        assert float(b.abs().max()) > 0, "a test on zeros proves nothing"
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())
    kept = graph.counts(plan)
    assert graph.cost.params(kept) == parameters(small)
    return small


def assert_groups(
    model: nn.Module,
    inputs: Any,
    sizes: dict[str, int],
    frozen: dict[str, str] | None = None,
    normalised: bool = False,
) -> Graph:
    """The graph has exactly these groups (name: channels), and a random cut of them is exact.

    frozen: name of a frozen layer: a part of the reason.
    """
    graph = trace(randomize_norms(model), inputs)
    assert {g.name: g.size for g in graph.groups} == sizes
    reasons = {f.name: f.reason for f in graph.frozen}
    for name, part in (frozen or {}).items():
        assert part in reasons[name]
    for seed in range(2):
        plan = graph.plan(random_kept(graph.groups, seed))
        assert_cut_is_exact(model, inputs, graph, plan, normalised)
    return graph
