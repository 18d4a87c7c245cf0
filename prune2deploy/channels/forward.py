"""Run a model as it is: with any inputs, in either mode, and with every operator in view."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune2deploy.errors import ModelError

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, the positional arguments, or the keyword arguments of forward."""

CONTRACTIONS = frozenset(
    {
        "aten.convolution",
        "aten._convolution",
        "aten.cudnn_convolution",
        "aten.mkldnn_convolution",
        "aten.addmm",
        "aten.mm",
        "aten.linear",
    }
)
"""Operators that read channels; the n-th call of these is site n in every run of the model."""

PRODUCTS = frozenset({"aten.bmm", "aten.baddbmm"})
"""Products of two activations: they cost multiply-accumulates too."""


class OperatorMode(TorchDispatchMode):
    """Shows a subclass every operator that runs inside the with-block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # Elsewhere autograd takes composite operators (conv2d, linear) apart before they
            # arrive here; inference mode leaves autograd out.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return self.run(func, args, kwargs)

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call the operator and return its result; subclasses do something besides."""
        raise NotImplementedError


def to_meta(value: Any) -> Any:
    """A tensor's shape without its values; single numbers and other things as they are."""
    if isinstance(value, Tensor) and value.dim() and not value.is_meta:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value


def operator_name(function: Any) -> str:
    """'aten.add' for any overload of aten::add."""
    return str(function._schema.name).replace("::", ".")


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with a tensor, positional or keyword arguments."""
    # The fused attention of nn.MultiheadAttention in eval mode is one operator that hides all its
    # channels, and it is taken or not by conditions that a cut may change.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def batch_size(inputs: Inputs) -> int:
    """Length of the first dimension of the first tensor among the inputs."""
    first = next((x for x in tree_leaves(inputs) if isinstance(x, Tensor)), None)
    if first is None or first.dim() == 0:
        raise ModelError(
            "The example inputs hold no tensor with a batch dimension. Pass the images that "
            "the model's forward expects, for example torch.randn(1, 3, 224, 224)."
        )
    return int(first.shape[0])


@contextmanager
def mode_kept(model: nn.Module, training: bool) -> Iterator[None]:
    """Run the with-block in train or eval mode; then restore every module's own mode."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Undo what the with-block draws: each run of a model in train mode throws the same dice."""
    ours, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(arrays)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the with-block does to buffers (a forward in train mode moves statistics)."""
    before = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def output_tensors(out: Any) -> list[Tensor]:
    """All tensors in what a model returns: in lists, dictionaries and dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf):
            for part in fields(leaf):
                found += output_tensors(getattr(leaf, part.name))
    return found
