"""Look at the activations that channels appear in, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.channels.forward import (
    CONTRACTIONS,
    Inputs,
    OperatorMode,
    call_model,
    mode_kept,
    operator_name,
)
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import IndexTable
from prune2deploy.channels.labels import Role

Visitor = Callable[[int, Tensor], None]
"""Called with a site's number and the tensor that the site reads, before it reads it."""


@dataclass(frozen=True)
class Contraction:
    """What a convolution or a matrix product multiplies, a matrix product as one over no space.

    read: shape (batch, inputs, *space). weight: shape (outputs, inputs / groups, *kernel).
    stride, padding, dilation: per dimension of the space.
    """

    read: Tensor
    weight: Tensor
    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1


ContractionVisitor = Callable[[int, Contraction], None]
"""Called with a site's number and what it is about to multiply."""


class _ReadMode(OperatorMode):
    """Calls `visit` with the number, the operator and the arguments of some sites."""

    def __init__(
        self, sites: Collection[int], visit: Callable[[int, str, Sequence[Any]], None]
    ) -> None:
        super().__init__()
        self._sites = sites
        self._visit = visit
        self._count = 0

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = operator_name(function)
        if name in CONTRACTIONS:
            if self._count in self._sites:
                self._visit(self._count, name, args)
            self._count += 1
        return function(*args, **kwargs)


def _read(name: str, args: Sequence[Any]) -> Tensor:
    # addmm has the bias first
    found: Tensor = args[1] if name == "aten.addmm" else args[0]
    return found


def _contraction(name: str, args: Sequence[Any]) -> Contraction | None:
    read = _read(name, args)
    if name in ("aten.convolution", "aten._convolution"):
        _, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
        if transposed:
            return None
        batched = read if read.dim() == weight.dim() else read[None]
        return Contraction(batched, weight, stride, padding, dilation, groups)
    weights = {"aten.addmm": 2, "aten.mm": 1, "aten.linear": 1}
    if name not in weights:
        return None
    weight = args[weights[name]]
    return Contraction(read.flatten(0, -2), weight if name == "aten.linear" else weight.mT)


def read_activations(
    model: nn.Module, inputs: Inputs, sites: Collection[int], visit: Visitor
) -> None:
    """Run the model in eval mode without gradients and show what some sites read.

    Args:
        sites: numbers as in Tap.site; the same for any batch size.
        visit: gets each tensor as it is; to keep it, copy it, for it may be
            overwritten in place later.
    """
    _watch(model, inputs, sites, lambda site, name, args: visit(site, _read(name, args)))


def read_contractions(
    model: nn.Module, inputs: Inputs, sites: Collection[int], visit: ContractionVisitor
) -> None:
    """Run the model like `read_activations` and show what some sites multiply.

    Transposed convolutions are passed over.
    """

    def see(site: int, name: str, args: Sequence[Any]) -> None:
        found = _contraction(name, args)
        if found is not None:
            visit(site, found)

    _watch(model, inputs, sites, see)


def _watch(
    model: nn.Module,
    inputs: Inputs,
    sites: Collection[int],
    visit: Callable[[int, str, Sequence[Any]], None],
) -> None:
    with torch.no_grad(), mode_kept(model, training=False), _ReadMode(set(sites), visit):
        call_model(model, inputs)


def reading_sites(graph: Graph) -> dict[int, list[tuple[int, str, IndexTable]]]:
    """Which layers read channels that can go.

    Returns:
        By number of the site: numbers of the groups that it reads, the name of its weight, and
        where the channels lie in what it reads, shape (channels, copies).
    """
    sites = {site.number: site for site in graph.sites}
    readers: dict[int, list[tuple[int, str, IndexTable]]] = {}
    for number, group in enumerate(graph.groups):
        reading = {slot.tensor for slot in group.of_role(Role.CONSUMER)}
        for tap in group.taps:
            # A tap is the first of the layers that read one tensor.
            for site in graph.sites:
                if (
                    site.tensor_key == sites[tap.site].tensor_key
                    and site.channel_dim == tap.dim
                    and site.parameter in reading
                ):
                    assert site.parameter is not None
                    readers.setdefault(site.number, []).append((number, site.parameter, tap.index))
    return readers
