"""Find which batch norms take their input straight from a convolution or linear layer.

Neither the order of modules nor their names say what feeds what, so the model is
run (or, without an input to run it on, traced symbolically) and the tensors are
followed. Both ways fill in one `Calls`, and one rule decides from it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from prune2deploy.channels.forward import Inputs, call_model, mode_kept

Norm: TypeAlias = _BatchNorm | FrozenBatchNorm2d
Layer: TypeAlias = _ConvNd | nn.Linear

_PLAIN_FORWARDS = {
    c.forward
    for c in (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
    )
}
_CONV_FORWARDS = {c._conv_forward for c in (_ConvNd, nn.Conv1d, nn.Conv2d, nn.Conv3d)} | {None}


@dataclass
class Calls:
    """What one pass through the model showed."""

    layers: Counter[Layer] = field(default_factory=Counter)
    """How often each plain layer was called."""
    links: list[tuple[Norm, Layer | None]] = field(default_factory=list)
    """One per call of a norm: the layer whose output it alone consumes, or None."""
    blocked: set[nn.Module] = field(default_factory=set)
    """Modules whose parameters are used by something else as well, or without a call."""


def foldable(calls: Calls) -> dict[Norm, list[Layer]]:
    """Return, for every norm that can be folded, the layers that take it over.

    That is possible when every call of the norm follows a layer, and every call of
    each of these layers leads into that norm and nowhere else.
    """
    linked = Counter(calls.links)
    result: dict[Norm, list[Layer]] = {}
    for norm in dict.fromkeys(norm for norm, _ in calls.links if norm not in calls.blocked):
        layers = [layer for other, layer in linked if other is norm]
        known = [layer for layer in layers if layer is not None and layer not in calls.blocked]
        if len(known) == len(layers) and all(
            calls.layers[layer] == linked[norm, layer] for layer in known
        ):
            result[norm] = known
    return result


def norm_behind(model: nn.Module, inputs: Inputs) -> dict[str, str | None]:
    """Which batch norm, if any, takes a layer's result and is its only reader.

    Returns:
        Name of the layer: name of the norm, or None where no norm is right behind. Layers whose
        own parameters are not all that counts, or that run more than once, are left out, and so
        are those in front of a norm that is shared, has no statistics, scale or shift, or does
        more than normalise.
    """
    with mode_kept(model, training=False):
        calls = calls_by_running(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    followed = foldable(calls)
    found: dict[str, str | None] = {}
    for layer, count in calls.layers.items():
        norms = [norm for norm, other in calls.links if other is layer]
        if count != 1 or layer in calls.blocked:
            continue
        if not norms:
            found[names[layer]] = None
        elif followed.get(norms[0]) == [layer] and _is_plain_norm(norms[0]):
            found[names[layer]] = names[norms[0]]
    return found


def is_dense(layer: nn.Module) -> bool:
    """Whether each of its channels may read all it reads, with the channels it makes in front."""
    if isinstance(layer, _ConvNd):
        return layer.groups == 1 and not isinstance(layer, _ConvTransposeNd)
    return isinstance(layer, nn.Linear)


def is_norm(module: nn.Module | None) -> TypeGuard[Norm]:
    """Whether the module is a batch norm, of PyTorch, derived from it, or frozen."""
    return isinstance(module, (_BatchNorm, FrozenBatchNorm2d))


def _is_plain_layer(module: nn.Module | None) -> TypeGuard[Layer]:
    """Whether the module computes exactly what its own weight and bias say."""
    return (
        isinstance(module, (_ConvNd, nn.Linear))
        and type(module).forward in _PLAIN_FORWARDS
        and getattr(type(module), "_conv_forward", None) in _CONV_FORWARDS
        # Parametrized or normalised weights are not parameters of the layer itself.
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not module._modules
        and not has_hooks(module)
    )


def _is_plain_norm(norm: Norm) -> bool:
    return (
        isinstance(norm, _BatchNorm)
        and type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        and norm.affine
        and norm.running_mean is not None
        and not has_hooks(norm)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at, or changes, what goes in and out of the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _with_shared_parameters(model: nn.Module) -> set[nn.Module]:
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return {module for sharing in owners.values() if len(sharing) > 1 for module in sharing}


@dataclass
class _Made:
    """A tensor that a plain layer returned, and how many operators consumed it."""

    tensor: weakref.ref[Tensor]
    layer: Layer
    consumers: int = 0


class _Watch(TorchDispatchMode):
    """Counts how often operators use the outputs of layers, and some parameters.

    Args:
        parameters: which, each with its owner; they must outlive the watch.
    """

    def __init__(self, parameters: dict[nn.Module, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = Calls()
        self.made: dict[int, _Made] = {}
        self.owners = {id(tensor): owner for owner, tensor in parameters.items()}
        self.uses: Counter[nn.Module] = Counter()
        self.norm_inputs: list[tuple[Norm, _Made | None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            self.consume(value)
        return func(*args, **(kwargs or {}))

    def consume(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if id(value) in self.owners:
                self.uses[self.owners[id(value)]] += 1
            made = self.find(value)
            if made is not None:
                made.consumers += 1

    def find(self, tensor: Any) -> _Made | None:
        made = self.made.get(id(tensor))
        # An id may be given again after its tensor has gone.
        return made if made is not None and made.tensor() is tensor else None

    def after_layer(self, layer: Layer, args: Any, output: Tensor) -> None:
        self.calls.layers[layer] += 1
        # Other numbers of dimensions: an input without a batch, or a linear layer over
        # the last of many, where the channels of layer and norm are not the same axis.
        if output.ndim == layer.weight.ndim:
            self.made[id(output)] = _Made(weakref.ref(output), layer)

    def before_norm(self, norm: Norm, args: tuple[Any, ...]) -> None:
        self.norm_inputs.append((norm, self.find(args[0]) if args else None))


def calls_by_running(model: nn.Module, inputs: Inputs) -> Calls:
    """Run the model, in the mode it is in, and follow the tensors.

    Whatever the forward pass raises is not caught.
    """
    layers = [module for module in model.modules() if _is_plain_layer(module)]
    norms = [module for module in model.modules() if is_norm(module)]
    watch = _Watch(
        {layer: layer.weight for layer in layers}
        | {norm: norm.running_mean for norm in norms if norm.running_mean is not None}
    )
    hooks = [layer.register_forward_hook(watch.after_layer) for layer in layers]
    hooks += [norm.register_forward_pre_hook(watch.before_norm) for norm in norms]
    try:
        with torch.no_grad(), watch:
            output = call_model(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for value in tree_leaves(output):
        watch.consume(value)
    for norm, made in watch.norm_inputs:
        alone = made is not None and made.consumers == 1
        watch.calls.links.append((norm, made.layer if made and alone else None))
    # A parameter used more often than its module was called is read by somebody else.
    seen = Counter(watch.calls.layers) + Counter(norm for norm, _ in watch.calls.links)
    watch.calls.blocked = _with_shared_parameters(model) | {
        owner for owner, uses in watch.uses.items() if uses != seen[owner]
    }
    return watch.calls


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or _is_plain_layer(m) or super().is_leaf_module(m, module_qualified_name)


def calls_by_tracing(model: nn.Module) -> Calls:
    """Trace the model symbolically and follow the values.

    Without shapes it cannot be known which axis of a linear layer's output a norm
    normalises, so these pairs are not linked. Whatever the trace raises is not caught.
    """
    graph = _Tracer().trace(model)
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    calls = Calls(blocked=_with_shared_parameters(model))

    def called(node: Any) -> nn.Module | None:
        if isinstance(node, fx.Node) and node.op == "call_module":
            return modules[str(node.target)]
        return None

    for node in graph.nodes:
        module = called(node)
        if node.op == "get_attr":
            calls.blocked.add(modules[str(node.target).rpartition(".")[0]])
        elif _is_plain_layer(module):
            calls.layers[module] += 1
        elif is_norm(module):
            source = node.args[0] if node.args else None
            layer = called(source)
            alone = isinstance(source, fx.Node) and len(source.users) == 1
            if alone and _is_plain_layer(layer) and not isinstance(layer, nn.Linear):
                calls.links.append((module, layer))
            else:
                calls.links.append((module, None))
    return calls
