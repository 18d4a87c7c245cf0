"""Squeeze-and-excitation branches beside layers, merged into them at the end.

Of SEP (sep.py), whose text has the formulas.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role
from prune2deploy.channels.norm_links import is_dense, norm_behind
from prune2deploy.methods.common.readings import weight_slots

_NAME = "prune2deploy_branches"
_HIDDEN = 4
"""The fewest units between down and up: a single one that is off would shut the branch up."""


def excluded(excitation: Tensor, count: int) -> Tensor:
    """Zero all but the `count` largest of each image; only those have a gradient.

    Args:
        excitation: shape (images, channels).
    """
    stay = excitation.topk(count, dim=1).indices
    return excitation * torch.zeros_like(excitation).scatter(1, stay, 1.0)


@dataclass(frozen=True)
class Branched:
    """A layer with a branch: whose result is scaled, and which of its channels are the group's."""

    group: str
    layer: nn.Module
    norm: nn.Module | None
    order: Tensor


def branched(graph: Graph) -> list[Branched]:
    links = norm_behind(graph.model, graph.inputs)
    found = []
    for group in graph.groups:
        for slot in weight_slots(graph, group, Role.PRODUCER):
            name = slot.tensor.rpartition(".")[0]
            layer = graph.model.get_submodule(name)
            if name not in links or not is_dense(layer) or slot.index.shape[1] != 1:
                continue
            norm = links[name]
            found.append(
                Branched(
                    group.name,
                    layer,
                    None if norm is None else graph.model.get_submodule(norm),
                    torch.from_numpy(slot.index[:, 0]),
                )
            )
    return found


class Branches(nn.Module):
    """The branches of a model's layers; a part of the model as long as it trains.

    keep: share of the channels that count for an image; None: all do.
    """

    def __init__(self, model: nn.Module, found: list[Branched]) -> None:
        super().__init__()
        self.keep: float | None = None
        # In tuples, or they would be registered as parts of this module.
        self._model = (model,)
        self._found = tuple(found)
        self._now: dict[int, Tensor] = {}
        self._handles = []
        self.nets = nn.ModuleList()
        for number, one in enumerate(found):
            weight = one.layer.get_parameter("weight")
            hidden = max(_HIDDEN, weight.shape[0] // 16)
            down = nn.Linear(weight.shape[1], hidden, bias=False)
            up = nn.Linear(hidden, len(one.order), bias=False)
            nn.init.zeros_(up.weight)
            net = nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid())
            self.nets.append(net.to(weight.device, weight.dtype))
            start = weight.new_full((len(one.order),), 0.5)
            self.register_buffer(f"mean{number}", start)
            self.register_buffer(f"sum{number}", torch.zeros_like(start))
            self.register_buffer(f"order{number}", one.order.to(weight.device))
            place = one.layer if one.norm is None else one.norm
            look = functools.partial(self._look, number)
            scale = functools.partial(self._scale, number)
            self._handles.append(one.layer.register_forward_pre_hook(look))
            self._handles.append(place.register_forward_hook(scale))
        self.register_buffer("seen", torch.zeros(len(found)))
        model.add_module(_NAME, self)

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes: an nn.Sequential calls all its parts in turn, and this is one."""
        return x

    def _look(self, number: int, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        if isinstance(layer, nn.Linear):
            x = x.reshape(len(x), -1, x.shape[-1]).mean(dim=1)
        else:
            x = x.flatten(2).mean(dim=2)
        excitation = self.nets[number](x)
        if self.training:
            with torch.no_grad():
                self.get_buffer(f"sum{number}").add_(excitation.float().sum(dim=0))
                self.seen[number] += len(x)
        self._now[number] = excitation

    def _scale(self, number: int, place: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        excitation = self._now.pop(number)
        if self.keep is not None:
            excitation = excluded(excitation, math.ceil(self.keep * excitation.shape[1]))
        linear = isinstance(self._found[number].layer, nn.Linear)
        dim = output.dim() - 1 if linear else 1
        factor = excitation.new_ones(len(excitation), output.shape[dim])
        factor = factor.index_copy(1, self.get_buffer(f"order{number}"), 2 * excitation)
        shape = [len(output), *[1] * (output.dim() - 1)]
        shape[dim] = output.shape[dim]
        return output * factor.view(shape).to(output.dtype)

    def end_pass(self) -> None:
        """Take the mean of what was seen since the last call, and begin anew."""
        with torch.no_grad():
            for number, seen in enumerate(self.seen.tolist()):
                total = self.get_buffer(f"sum{number}")
                if seen:
                    self.get_buffer(f"mean{number}").copy_(total / seen)
                total.zero_()
            self.seen.zero_()

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        """Leave the plain model behind; return the mean excitation per name of a group."""
        (model,) = self._model
        for handle in self._handles:
            handle.remove()
        means: dict[str, list[Tensor]] = {}
        for number, one in enumerate(self._found):
            mean, order = self.get_buffer(f"mean{number}"), self.get_buffer(f"order{number}")
            place = one.layer if one.norm is None else one.norm
            for parameter in place.parameters(recurse=False):
                factor = parameter.new_ones(len(parameter)).index_copy(0, order, 2 * mean)
                parameter.mul_(factor.view(-1, *[1] * (parameter.dim() - 1)))
            means.setdefault(one.group, []).append(mean.detach().cpu())
        del model._modules[_NAME]
        return {name: torch.stack(some).mean(dim=0) for name, some in means.items()}
