"""Compactors: a matrix behind the batch norms that make a group, merged into them at the end.

Of ResRep (resrep.py): y = Q norm(conv(x)), the same Q for all layers that make the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy.channels import Graph, Group, Role
from prune2deploy.channels.norm_links import is_dense

_NAME = "prune2deploy_compactors"


@dataclass(frozen=True)
class Pair:
    """A layer, the norm behind it, and where in them the group's channels are, shape (size,)."""

    layer: nn.Module
    norm: _BatchNorm
    order: Tensor


def pairs_of(
    graph: Graph, group: Group, links: dict[str, str | None], residual: bool
) -> list[Pair]:
    """The layers that make a group, each with its norm; empty if a compactor is not possible."""
    norms = {slot.tensor.rpartition(".")[0]: slot for slot in group.of_role(Role.SCALE)}
    made = dict.fromkeys(s.tensor.rpartition(".")[0] for s in group.of_role(Role.PRODUCER))
    if len(made) != len(norms) or not made or (len(made) > 1 and not residual):
        return []
    pairs = []
    for name in made:
        slot = norms.get(links.get(name) or "")
        layer = graph.model.get_submodule(name)
        if slot is None or not is_dense(layer):
            return []
        norm = graph.model.get_submodule(slot.tensor.rpartition(".")[0])
        assert isinstance(norm, _BatchNorm)
        # Channels that stay or belong to another group would be mixed in.
        if slot.index.shape != (norm.num_features, 1):
            return []
        pairs.append(Pair(layer, norm, torch.from_numpy(slot.index[:, 0])))
    return pairs


class Compactors(nn.Module):
    """A matrix per group, applied behind its norms; a part of the model as long as it trains."""

    def __init__(self, model: nn.Module, pairs: dict[str, list[Pair]]) -> None:
        super().__init__()
        # In tuples, or they would be registered as parts of this module.
        self._model = (model,)
        self._names = tuple(pairs)
        self.pairs_of = tuple((n, pair) for n, some in enumerate(pairs.values()) for pair in some)
        starts = [some[0].norm.weight.detach() for some in pairs.values()]
        self.matrices = nn.ParameterList(
            nn.Parameter(torch.diag(torch.ones_like(s))) for s in starts
        )
        for number, start in enumerate(starts):
            self.register_buffer(f"mask{number}", torch.ones_like(start))
        self._handles = []
        for number, (_, pair) in enumerate(self.pairs_of):
            # What a norm gives has its shift and scale for mean and deviation.
            self.register_buffer(f"mean{number}", pair.norm.bias.detach().clone())
            self.register_buffer(f"variance{number}", pair.norm.weight.detach().square())
            self.register_buffer(f"order{number}", pair.order.to(pair.norm.weight.device))
            self._handles.append(pair.norm.register_forward_hook(_Behind(self, number)))
        model.add_module(_NAME, self)

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes: an nn.Sequential calls all its parts in turn, and this is one."""
        return x

    def matrix(self, number: int) -> Tensor:
        """The compactor of a pair, its rows and columns in the order of the norm's channels."""
        back = self.get_buffer(f"order{number}").argsort()
        found: Tensor = self.matrices[self.pairs_of[number][0]][back][:, back]
        return found

    def apply_to(self, number: int, normed: Tensor) -> Tensor:
        """Multiply, and in training follow mean and variance of the result."""
        matrix = self.matrix(number).to(normed.dtype)
        convolve = (F.linear, F.conv1d, F.conv2d, F.conv3d)[normed.dim() - 2]
        y = convolve(normed, matrix.view(*matrix.shape, *[1] * (normed.dim() - 2)))
        norm = self.pairs_of[number][1].norm
        if norm.training:
            with torch.no_grad():
                seen = y.detach().float().transpose(0, 1).flatten(1)
                factor = norm.momentum
                if factor is None:
                    factor = 1 / max(1, int(norm.num_batches_tracked or 1))
                self.get_buffer(f"mean{number}").lerp_(seen.mean(dim=1), factor)
                self.get_buffer(f"variance{number}").lerp_(seen.var(dim=1), factor)
        return y

    def masked(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each matrix with its mask."""
        return [(m, self.get_buffer(f"mask{n}")) for n, m in enumerate(self.matrices)]

    def norms(self) -> list[Tensor]:
        """Row norms per group."""
        return [m.detach().norm(dim=1).cpu() for m in self.matrices]

    def forget(self, chosen: list[Tensor]) -> None:
        """Mask these rows, and no others."""
        for (_, mask), gone in zip(self.masked(), chosen, strict=True):
            mask.copy_(~gone)

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        """Leave the plain model behind; return the row norms per name of a group."""
        (model,) = self._model
        for handle in self._handles:
            handle.remove()
        for number, (_, pair) in enumerate(self.pairs_of):
            mean, variance = self.get_buffer(f"mean{number}"), self.get_buffer(f"variance{number}")
            _fold(pair.layer, pair.norm, self.matrix(number), mean, variance)
        del model._modules[_NAME]
        return dict(zip(self._names, self.norms(), strict=True))


class _Behind:
    """Hook of a norm. A class, so that a copy of the model has hooks that know the copy."""

    def __init__(self, compactors: Compactors, number: int) -> None:
        self._compactors = compactors
        self._number = number

    def __call__(self, norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self._compactors.apply_to(self._number, output)


def _fold(layer: Any, norm: _BatchNorm, matrix: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Change layer and norm so that together they give matrix @ norm(layer(x)), exactly.

    mean, variance: of that, per channel; any with variance >= 0 are right.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    q, m, v = matrix.double(), mean.double(), variance.double()
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - scale * norm.running_mean.double()
    if layer.bias is not None:
        shift = shift + scale * layer.bias.double()
    constant = q @ shift
    layer.weight.copy_(((q * scale) @ layer.weight.double().flatten(1)).view_as(layer.weight))
    norm.running_mean.copy_(m)
    if layer.bias is not None:
        layer.bias.copy_(constant)
    else:
        norm.running_mean.copy_(m - constant)
    norm.running_var.copy_(v)
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(m)
