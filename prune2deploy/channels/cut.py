"""Carry a plan out: `cut` makes the narrower model, `mask` the zeroed one it must equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from prune2deploy.channels.copying import copied
from prune2deploy.channels.groups import IndexTable
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.plan import Plan
from prune2deploy.errors import ModelError


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a narrower copy without the channels that the plan removes.

    Parameters keep their names, dtypes, devices and requires_grad; modules keep
    their class, hooks and mode. The model itself is left alone.

    Raises:
        ModelError: the plan was made for a model of other shapes.
    """

    def narrow(tensor: Tensor, dims: dict[int, IndexTable]) -> Tensor:
        for dim, ids in dims.items():
            tensor = tensor.index_select(dim, torch.from_numpy(ids).to(tensor.device))
        return tensor.contiguous()

    small = _rebuilt(model, plan, narrow)
    first_name = {id(tensor): name for name, tensor in tensors_of(small).items()}
    for module in small.modules():
        kept = {
            leaf: plan.keep[first_name[id(tensor)]]
            for leaf, tensor in _own_tensors(module).items()
            if first_name[id(tensor)] in plan.keep
        }
        _follow_attributes(module, kept)
    for name, attributes in plan.attributes.items():
        for attribute, value in attributes.items():
            _set_length(small.get_submodule(name), name, attribute, value)
    return small


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by the names under which it uses them.

    A parametrized weight is computed from one or several parameters; the largest has its shape.
    """
    own = {
        leaf: tensor
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for leaf, originals in module.parametrizations.items():
            own[leaf] = max(_own_tensors(originals).values(), key=lambda x: x.numel())
    return own


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the same shapes with every entry that the plan removes set to zero.

    In eval mode its output equals the cut model's, which is how cuts are tested.

    Raises:
        ModelError: the plan was made for a model of other shapes.
    """

    def zero(tensor: Tensor, dims: dict[int, IndexTable]) -> Tensor:
        result = tensor.clone()
        for dim, ids in dims.items():
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), ids)
            result.index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0)
        return result

    return _rebuilt(model, plan, zero)


def _rebuilt(
    model: nn.Module, plan: Plan, change: Callable[[Tensor, dict[int, IndexTable]], Tensor]
) -> nn.Module:
    """Copy the model with each planned tensor replaced by its changed form.

    The new tensors are planted in deepcopy's memo, so that every place that holds
    one of them (a second name, a plain attribute) gets the same new tensor, and
    the old ones are never copied.
    """
    tensors = tensors_of(model)
    memo: dict[int, object] = {}
    for name, dims in plan.keep.items():
        if name not in tensors or tuple(tensors[name].shape) != plan.shapes[name]:
            found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
            raise ModelError(
                f"The plan was made for another model: '{name}' has shape {found}, "
                f"the plan expects {plan.shapes[name]}. Trace and plan this model again."
            )
        old = tensors[name]
        with torch.no_grad():
            new = change(old.detach(), dict(dims))
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        memo[id(old)] = new
    try:
        return _without(copied(model, memo), plan.blocks)
    except (RuntimeError, TypeError) as err:
        raise ModelError(
            f"The model cannot be copied ({type(err).__name__}: {err}). A module keeps something "
            "that copy.deepcopy refuses, often the result of an earlier forward pass; "
            "set it to None, or keep its .detach()."
        ) from err


def _without(model: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """The model with identities in the place of these modules."""
    names = dict(model.named_modules())
    for name in blocks:
        if name not in names:
            raise ModelError(
                f"The plan was made for another model: it removes the block '{name}', and there "
                "is no such module. Trace and plan this model again."
            )
        model.set_submodule(name, nn.Identity())
    return model


def _set_length(module: nn.Module, name: str, attribute: str, value: int) -> None:
    """Set a module's attribute, or one entry of it: 'num_heads', 'split_sizes[1]'."""
    attribute, _, index = attribute.rstrip("]").partition("[")
    old = getattr(module, attribute, None)
    if not index:
        setattr(module, attribute, value)
    elif isinstance(old, (list, tuple)) and int(index) < len(old):
        entries = [*old[: int(index)], value, *old[int(index) + 1 :]]
        # torch.Size and named tuples are not made from a list alone.
        setattr(module, attribute, entries if isinstance(old, list) else tuple(entries))
    else:
        raise ModelError(
            f"The plan sets entry {index} of '{attribute}' of '{name}', which is {old!r}. "
            "The plan was made for another model; trace and plan this one again."
        )


_LENGTHS: dict[str, tuple[tuple[str, int], ...]] = {
    # attribute: the tensors and dimensions whose length it states
    "out_features": (("weight", 0), ("bias", 0)),
    "in_features": (("weight", 1),),
    "num_features": (("weight", 0), ("running_mean", 0)),
    "num_parameters": (("weight", 0),),
    "num_channels": (("weight", 0),),
    "num_embeddings": (("weight", 0),),
    "embedding_dim": (("weight", 1),),
}


def _follow_attributes(module: nn.Module, kept: Mapping[str, Mapping[int, IndexTable]]) -> None:
    """Set the widths that one of PyTorch's own modules states about itself to those of its tensors.

    kept: kept indices per dimension of the module's own tensors.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        name = next((name for name in _CONV_WEIGHTS if name in kept), None)
        if name is not None:
            _follow_convolution(module, kept[name], getattr(module, name).shape)
        return
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and "weight" in kept:
        assert module.weight is not None
        module.normalized_shape = tuple(module.weight.shape)
    if isinstance(module, nn.GroupNorm) and 0 in kept.get("weight", {}):
        # Whole norm groups went if one of them kept nothing.
        per_group = module.num_channels // module.num_groups
        module.num_groups = len(np.unique(kept["weight"][0] // per_group))
    for attribute, places in _LENGTHS.items():
        if not isinstance(getattr(module, attribute, None), int):
            continue
        for tensor, dim in places:
            if dim in kept.get(tensor, {}):
                setattr(module, attribute, len(kept[tensor][dim]))
                break


_CONV_WEIGHTS = ("weight", "weight_v")


def _follow_convolution(
    conv: nn.modules.conv._ConvNd, kept: Mapping[int, IndexTable], shape: torch.Size
) -> None:
    if conv.groups > 1 and 0 in kept:
        # Whole groups went if some group kept nothing; else one position went in all of them.
        rows = conv.in_channels if conv.transposed else conv.out_channels
        conv.groups = len(np.unique(kept[0] // (rows // conv.groups)))
    wide, narrow = shape[0], shape[1] * conv.groups
    if conv.transposed:
        conv.in_channels, conv.out_channels = wide, narrow
    else:
        conv.in_channels, conv.out_channels = narrow, wide
