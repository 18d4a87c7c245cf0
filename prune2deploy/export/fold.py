"""Fold batch norms into the layers before them.

In eval mode a batch norm multiplies each channel by a constant and adds another:
y = (x - mean) / sqrt(var + eps) * gamma + beta. Where x comes straight from a
convolution or a linear layer, both constants go into that layer's weight and bias
and the norm disappears.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torchvision.ops import FrozenBatchNorm2d

from prune2deploy.channels.norm_links import (
    Calls,
    Layer,
    Norm,
    calls_by_running,
    calls_by_tracing,
    foldable,
    has_hooks,
    is_norm,
)
from prune2deploy.errors import ExportError
from prune2deploy.models import explain

_log = logging.getLogger(__name__)

_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, FrozenBatchNorm2d.forward)


def fold_batchnorm(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None
) -> nn.Module:
    """Return a copy in eval mode, without the batch norms that follow a layer directly.

    Exact but for rounding; computed in float64. The copy keeps the model's own forward
    code: a folded norm becomes nn.Identity (of a class that does more than normalise,
    the rest stays), and its layer has a bias. A norm stays as it is where its input
    does not come from a convolution or linear layer alone, or where that layer has
    another use. `remaining_batchnorms` names those.

    Args:
        model: left alone.
        example_inputs: what the model is called with. With it the model is run once,
            and any forward code will do. Without it the model must be traceable by
            torch.fx, and norms after linear layers stay.

    Raises:
        ExportError: the model cannot be run or traced, or a norm holds values that
            are not finite.
    """
    folded = copy.deepcopy(model).eval()
    names = {module: name for name, module in folded.named_modules()}
    replacements: dict[nn.Module, nn.Module] = {}
    for norm, layers in foldable(_follow(folded, example_inputs)).items():
        if has_hooks(norm) or norm.running_mean is None:
            continue
        scale, shift = _scale_and_shift(norm, names[norm])
        rest = _rest_of(norm, scale, shift)
        if rest is not None and all(_channels(layer) == scale.numel() for layer in layers):
            for layer in layers:
                _absorb(layer, scale, shift)
            replacements[norm] = rest
    for parent in list(folded.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    remaining = remaining_batchnorms(folded)
    _log.info("Folded %d batch norms; %d remain.", len(replacements), len(remaining))
    if remaining:
        _log.info("With no layer to go into, or never run: %s.", ", ".join(remaining))
    return folded.eval()


def _follow(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None) -> Calls:
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    try:
        if example_inputs is None:
            return calls_by_tracing(model)
        return calls_by_running(model, example_inputs)
    except Exception as err:
        advice = (
            "Give fold_batchnorm example_inputs, so that the model is run instead of traced."
            if example_inputs is None
            else "Check that the model runs on these inputs in eval mode."
        )
        raise ExportError(
            f"Batch norms cannot be folded, because the model cannot be followed: {explain(err)}. "
            + advice
        ) from err


def remaining_batchnorms(model: nn.Module) -> list[str]:
    """Return the names of a model's batch norms, also of those that eval mode never runs."""
    return [name for name, module in model.named_modules() if is_norm(module)]


def _scale_and_shift(norm: Norm, name: str) -> tuple[Tensor, Tensor]:
    """Return the two float64 vectors with norm(x) = x * scale + shift, per channel."""
    assert norm.running_mean is not None  # One that has none normalises by its batch.
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise ExportError(
            f"Batch norm '{name}' holds NaN, infinity or a negative variance. "
            "The training that made these weights diverged; use an earlier checkpoint."
        )
    return scale, shift


def _rest_of(norm: Norm, scale: Tensor, shift: Tensor) -> nn.Module | None:
    """Return what the module does besides normalising, or None where that cannot be separated."""
    if type(norm).forward in _PLAIN_FORWARDS:
        return nn.Identity()
    # A class of its own, such as timm's norms with an activation inside: its code is
    # kept without the norm, and believed only if it then gives the same numbers.
    try:
        rest = _traced_without_norm(norm)
        dimensions = 1 if isinstance(norm, nn.BatchNorm1d) else 3 if _is_3d(norm) else 2
        shape = (-1,) + (1,) * dimensions
        x = torch.randn(4, scale.numel(), *(3,) * dimensions, generator=_seeded())
        x = x.to(norm.running_mean) * 2
        normed = x * scale.to(x).view(shape) + shift.to(x).view(shape)
        with torch.no_grad():
            expected, found = norm(x), rest(normed)
    except Exception as err:
        _log.info("%s was not taken apart: %s", type(norm).__name__, explain(err))
        return None
    close = torch.allclose(expected, found, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return rest if close else None


def _traced_without_norm(norm: Norm) -> nn.Module:
    graph = fx.Tracer().trace(norm)
    (normalise,) = (n for n in graph.nodes if n.target in (F.batch_norm, torch.batch_norm))
    normalise.replace_all_uses_with(normalise.args[0])
    graph.erase_node(normalise)
    return fx.GraphModule(norm, graph)


def _is_3d(norm: Norm) -> bool:
    return isinstance(norm, nn.BatchNorm3d)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _channels(layer: Layer) -> int:
    if isinstance(layer, _ConvTransposeNd):
        return layer.out_channels
    return int(layer.weight.shape[0])


def _absorb(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Change the layer's weight and bias so that it computes norm(layer(x))."""
    weight = layer.weight.detach().double()
    if isinstance(layer, _ConvTransposeNd):
        # Shape (in, out / groups, …), and the inputs of group g lead to its own outputs.
        grouped = weight.unflatten(0, (layer.groups, -1))
        factors = scale.view(layer.groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight = (grouped * factors).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    old = layer.weight
    layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
