"""Which entries of a model a pruned copy has kept, and what that copy must then return.

Nothing here knows which tool pruned: the copy's tensors are found again among the original's
by their values, all others are set to zero, and the two models must agree. A normalisation
(LayerNorm, GroupNorm) whose own weights were cut sees the kept entries alone, as zeros would
count in its mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ATTEMPTS = 40
"""Entries to start from, until one shows the kept places without doubt."""


class NotComparable(Exception):
    """The pruned tensors are no cut-outs of the original ones, so there is no reference."""


@dataclass
class Reference:
    """The original with what the pruned copy lacks set to zero.

    norms: normalisations that see the kept entries alone.
    narrowed: attention blocks with the factor by which the width of their heads shrank.
    """

    model: nn.Module
    norms: list[str]
    narrowed: list[tuple[nn.MultiheadAttention, float]]

    def follow_scales(self) -> None:
        """Divide attention's products by the root of the new width of the heads, as the copy does.

        What the model then computes is no longer the original with fewer channels.
        """
        with torch.no_grad():
            for attention, shrunk in self.narrowed:
                width = attention.embed_dim
                for weights in (attention.in_proj_weight, attention.in_proj_bias):
                    if weights is not None:
                        weights[:width] *= math.sqrt(shrunk)


def make_distinct(model: nn.Module, seed: int = 0) -> None:
    """Change equal values within a vector (bias, scale, statistics) a little, so that none are."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _tensors(model):
            statistics = name.endswith(("running_mean", "running_var"))
            if not (isinstance(tensor, nn.Parameter) or statistics):
                continue
            if tensor.numel() != max(tensor.shape, default=0):
                continue  # along each of several dimensions some line has no equal values
            flat = tensor.flatten()
            while (again := _repeated(flat)).any():
                step = 1e-3 * float(flat.abs().max()) or 1e-3
                flat[again] += step * torch.rand(int(again.sum()), generator=random)
            tensor.copy_(flat.view_as(tensor))


def _repeated(values: Tensor) -> Tensor:
    """True where the value stands earlier in sorted order already."""
    ordered, order = values.sort()
    again = torch.zeros(len(values), dtype=torch.bool)
    again[order[1:]] = ordered[1:] == ordered[:-1]
    return again


def make_reference(whole: nn.Module, small: nn.Module) -> Reference:
    """Turn the original into what `small` must agree with; changes `whole`, in eval mode.

    Raises:
        NotComparable: a tensor of `small` is not the original's at some places of each dimension.
    """
    pruned = dict(_tensors(small))
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in _tensors(whole):
        if name not in pruned:
            raise NotComparable(f"the pruned model has no {name}")
        try:
            kept[name] = kept_places(tensor, pruned[name])
        except NotComparable as err:
            raise NotComparable(f"{name}: {err}") from err
    with torch.no_grad():
        for name, tensor in _tensors(whole):
            if tensor.shape != pruned[name].shape:
                grid = _open_grid(kept[name])
                tensor.zero_()[grid] = pruned[name].to(tensor.dtype)
    norms = [name for name, module in whole.named_modules() if _on_kept(name, module, kept)]
    return Reference(whole, norms, list(_narrowed_heads(whole, small)))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers; a shared one under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def kept_places(whole: Tensor, small: Tensor) -> list[Tensor]:
    """Per dimension the places of `whole` that make up `small`.

    Raises:
        NotComparable: there are none.
    """
    everything = [torch.arange(length) for length in whole.shape]
    if whole.shape == small.shape:
        if not torch.equal(whole, small):
            raise NotComparable("the values changed")
        return everything
    shapes = f"{tuple(whole.shape)} became {tuple(small.shape)}"
    if whole.dim() != small.dim() or not small.numel():
        raise NotComparable(shapes)
    random = torch.Generator().manual_seed(0)
    for _ in range(ATTEMPTS):
        anchor = [int(torch.randint(length, (1,), generator=random)) for length in small.shape]
        for found in (whole == small[tuple(anchor)]).nonzero()[:8].tolist():
            places = _along_lines(whole, small, anchor, found)
            if places is not None and torch.equal(whole[_open_grid(places)], small):
                return places
    raise NotComparable(f"{shapes}, which is no choice of its rows and columns")


def _along_lines(
    whole: Tensor, small: Tensor, anchor: list[int], found: list[int]
) -> list[Tensor] | None:
    """Per dimension where the line through `anchor` has its values in the line through `found`."""
    places = []
    for dim, length in enumerate(whole.shape):
        if length == small.shape[dim]:
            places.append(torch.arange(length))
            continue
        line, ordered = _line(small, dim, anchor), _line(whole, dim, found).sort()
        position = torch.searchsorted(ordered.values, line).clamp(max=length - 1)
        if not torch.equal(ordered.values[position], line):
            return None
        places.append(ordered.indices[position])
    return places


def _line(tensor: Tensor, dim: int, through: list[int]) -> Tensor:
    index = [slice(None) if d == dim else place for d, place in enumerate(through)]
    return tensor.detach()[tuple(index)].contiguous()


def _open_grid(places: list[Tensor]) -> tuple[Tensor, ...]:
    """The places as an index that selects their outer product."""
    dims = len(places)
    return tuple(p.view(-1, *[1] * (dims - dim - 1)) for dim, p in enumerate(places))


def _on_kept(name: str, module: nn.Module, kept: dict[str, list[Tensor]]) -> bool:
    """Let a normalisation whose weights were cut see the kept entries alone; whether it was."""
    if not isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or module.weight is None:
        return False
    places = kept[f"{name}.weight"][-1]
    if module.weight.dim() != 1 or len(places) == len(module.weight):
        return False
    narrow = copy.deepcopy(module)
    for leaf in ("weight", "bias"):
        if getattr(module, leaf) is not None:
            setattr(narrow, leaf, nn.Parameter(getattr(module, leaf).detach()[places]))
    if isinstance(narrow, nn.GroupNorm):
        group = places // (module.weight.numel() // narrow.num_groups)
        counts = torch.bincount(group, minlength=narrow.num_groups)
        if bool((counts != counts[0]).any()):
            raise NotComparable(f"{name}: the groups kept different numbers of channels")
        narrow.num_channels = len(places)
    else:
        narrow.normalized_shape = (len(places),)
    # The subclass in torchvision's ConvNeXt normalises images, channels first.
    dim = -1 if type(module) is nn.LayerNorm else 1

    def forward(x: Tensor) -> Tensor:
        inner: Tensor = narrow(x.index_select(dim, places))
        return torch.zeros_like(x).index_copy_(dim, places, inner)

    module.__dict__["forward"] = forward
    return True


def _narrowed_heads(
    whole: nn.Module, small: nn.Module
) -> Iterator[tuple[nn.MultiheadAttention, float]]:
    pruned = dict(small.named_modules())
    for name, module in whole.named_modules():
        other = pruned.get(name)
        if isinstance(module, nn.MultiheadAttention) and isinstance(other, nn.MultiheadAttention):
            shrunk = module.head_dim / other.head_dim
            if shrunk != 1 and module.in_proj_weight is not None:
                yield module, shrunk
