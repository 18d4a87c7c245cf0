"""Whole residual blocks: which there are, and the model without some of them.

A block is a module that adds something to what it was given. If the layer whose result it adds
last gives zero, and the block then returns its input, number by number, nothing is lost when an
identity stands in its place. That is how blocks are found: by trying it on the model's own
activations, so no list of class names is needed. A block whose shortcut has layers of its own,
as where a stage narrows the image, does not return its input and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.channels.forward import Inputs, call_model, mode_kept
from prune2deploy.channels.plan import Plan

_CLOSE = 1e-5


@dataclass(frozen=True)
class Block:
    """A residual block.

    name: of the module. last: of the layer in it whose zeroed result makes it return its input.
    """

    name: str
    last: str


def find_blocks(model: nn.Module, inputs: Inputs) -> tuple[Block, ...]:
    """Find the blocks that an identity can stand for, in the order of the model.

    Of blocks in blocks only the inner ones are listed.

    Args:
        model: run in eval mode without gradients, and left as it was.
        inputs: as for trace.
    """
    with torch.no_grad(), mode_kept(model, training=False):
        calls = _calls(model, inputs)
        found: list[Block] = []
        for name, module in reversed(list(model.named_modules())):
            if any(block.name.startswith(f"{name}.") for block in found):
                continue
            given = calls.get(name)
            if given is None or not any(module.children()):
                continue
            last = _last_of_branch(module, given)
            if last is not None:
                found.append(Block(name, f"{name}.{last}"))
    return tuple(reversed(found))


def _calls(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """What each module that runs once, on one tensor, and returns one like it, was given."""
    seen: dict[str, list[Tensor | None]] = {}
    handles = []

    def watcher(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if len(args) == 1 and not kwargs else None
            like = isinstance(x, Tensor) and isinstance(output, Tensor) and x.shape == output.shape
            seen.setdefault(name, []).append(given.pop(name, None) if like else None)

        return watch

    given: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, args: Any) -> None:
            # A copy, since a block may add in place.
            if len(args) == 1 and isinstance(args[0], Tensor):
                given[name] = args[0].clone()

        return keep

    for name, module in model.named_modules():
        if name and any(module.children()):
            handles.append(module.register_forward_pre_hook(keeper(name)))
            handles.append(module.register_forward_hook(watcher(name), with_kwargs=True))
    try:
        call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: tensors[0] for name, tensors in seen.items() if len(tensors) == 1}
    return {name: tensor for name, tensor in once.items() if tensor is not None}


def _last_of_branch(module: nn.Module, given: Tensor) -> str | None:
    """The layer with a weight, of those that run last, whose zero makes the module an identity."""
    order: list[str] = []
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if name and not any(layer.children()) and isinstance(getattr(layer, "weight", None), Tensor)
    }
    handles = [
        layer.register_forward_hook(lambda m, i, o, name=name: order.append(name))
        for name, layer in layers.items()
    ]
    try:
        usual = module(given.clone())
    finally:
        for handle in handles:
            handle.remove()
    if _same(usual, given):
        return None  # an identity already: nothing can be learned from it
    for name in reversed(order):
        with _zeroed(layers[name]):
            result = module(given.clone())
        if order.count(name) == 1 and _same(result, given):
            return name
    return None


class _zeroed:
    """A layer that gives zero inside the with-block."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __enter__(self) -> None:
        self._handle = self._layer.register_forward_hook(lambda m, i, o: torch.zeros_like(o))

    def __exit__(self, *problem: object) -> None:
        self._handle.remove()


def _same(result: Any, given: Tensor) -> bool:
    if not isinstance(result, Tensor) or result.shape != given.shape:
        return False
    scale = float(given.abs().max())
    return scale > 0 and float((result - given).abs().max()) <= _CLOSE * scale


def plan_without(blocks: Collection[Block], notes: Collection[str] = ()) -> Plan:
    """The plan that puts identities in the place of these blocks."""
    return Plan({}, {}, notes=tuple(notes), blocks=tuple(block.name for block in blocks))


def zeroed_blocks(model: nn.Module, inputs: Inputs, blocks: Collection[Block]) -> Any:
    """What the whole model returns while these blocks' branches give zero, in eval mode.

    The model that the plan above leaves must return the same.
    """
    with torch.no_grad(), mode_kept(model, training=False):
        layers = [_zeroed(model.get_submodule(block.last)) for block in blocks]
        try:
            for layer in layers:
                layer.__enter__()
            return call_model(model, inputs)
        finally:
            for layer in layers:
                layer.__exit__()
