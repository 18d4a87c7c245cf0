"""Run a model once and write down which of its channels depend on one another.

The model runs for real, below autograd, so anything that its forward does in
Python (branches, loops, modules called twice, functions instead of modules) is
simply what happens. Each operator call is passed to its rule in rules.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prune2deploy.channels import rules
from prune2deploy.channels.labels import Labels, NodeIds, NodeTable, tensors_of
from prune2deploy.errors import ModelError

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Site:
    """One contraction (convolution or matrix product with a weight).

    number: the how-manieth contraction of the forward pass.
    tensor_key: which tensor it reads; two sites with one key read the same tensor.
    channel_dim: the dimension of that tensor that holds the channels.
    reads: node ids along that dimension, or None.
    parameter: the weight's name, or None where the weight is computed.
    factors: lengths whose product, times positions, is the multiply-accumulates of one
        forward pass of the example: the weight's dimensions, and those beside the
        channels that hold channels too. Each with its node ids, or None.
    """

    number: int
    tensor_key: int
    channel_dim: int
    reads: NodeIds | None
    parameter: str | None
    factors: tuple[tuple[NodeIds | None, int], ...]
    positions: int


@dataclass
class Tracer:
    """What the rules see: the node table, and the labels of every living tensor."""

    nodes: NodeTable = field(default_factory=NodeTable)
    sites: list[Site] = field(default_factory=list)
    unknown_ops: Counter[str] = field(default_factory=Counter)
    _labels: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    contractions: int = 0
    recording_sites: bool = True
    in_rule: bool = False
    _keys: int = 0

    def labels(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; all None if nothing is known of it."""
        known: Labels | None = self._labels.get(tensor)
        if known is None:
            known = Labels([None] * tensor.dim(), tuple(tensor.shape), key=self._next_key())
            self._labels[tensor] = known
        return known

    def set(
        self, tensor: Tensor, dims: Sequence[NodeIds | None], parameter: str | None = None
    ) -> None:
        """Set a result's labels. A dimension of length 1 never carries any."""
        if len(dims) != tensor.dim():
            raise AssertionError(f"{len(dims)} labels for a tensor of {tensor.dim()} dimensions")
        kept = [ids if n > 1 else None for ids, n in zip(dims, tensor.shape, strict=True)]
        self._labels[tensor] = Labels(kept, tuple(tensor.shape), parameter, self._next_key())

    def add_site(self, read: Tensor, channel_dim: int, weight: Tensor, positions: int) -> None:
        """Write down a contraction that reads `read` and multiplies it with `weight`.

        positions: multiply-accumulates per entry of the weight, over the dimensions of
            `read` before channel_dim that carry no labels and the space after it.
        """
        if not self.recording_sites:
            return
        source = self.labels(read)
        known = self.labels(weight)
        factors = list(zip(known.dims, weight.shape, strict=True))
        for d in range(channel_dim):
            if source.dims[d] is None:
                positions *= read.shape[d]
            else:
                factors.append((source.dims[d], read.shape[d]))
        self.sites.append(
            Site(
                self.contractions - 1,
                source.key,
                channel_dim,
                source.dims[channel_dim],
                known.parameter,
                tuple(factors),
                positions,
            )
        )

    def register(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer its nodes."""
        labels = self.nodes.add_tensor(name, tensor.shape)
        labels.key = self._next_key()
        self._labels[tensor] = labels

    def forget_results(self, keep: Mapping[str, Tensor]) -> None:
        """Drop the labels of everything but parameters and buffers, between two runs."""
        kept = [(tensor, self._labels[tensor]) for tensor in keep.values()]
        self._labels = WeakTensorKeyDictionary()
        for tensor, labels in kept:
            self._labels[tensor] = labels

    def handle(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Move labels through one call."""
        self.in_rule = True
        self._handle(function, args, kwargs, out)
        self.in_rule = False

    def _handle(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = operator_name(function)
        inputs = rules.tensors_in(args) + rules.tensors_in(list(kwargs.values()))
        carried = [self.labels(x) for x in inputs]
        if name in CONTRACTIONS:
            self.contractions += 1
        elif not any(labels.labelled for labels in carried):
            return
        for labels in carried:
            if labels.parameter is not None:
                for ids in labels.dims:
                    if ids is not None:
                        self.nodes.touched.append(ids)
        call = rules.Call(name, {}, out)
        found = rules.find_rule(function)
        if found is None:
            self.unknown_ops[call.name] += 1
            rules.unknown(self, call, carried)
            return
        call.args = _bind(function, args, kwargs)
        found(self, call)

    def _next_key(self) -> int:
        self._keys += 1
        return self._keys


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


class _TraceMode(OperatorMode):
    """Passes each operator on, and tells the tracer of it."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        self._tracer.handle(function, args, kwargs, out)
        return out


def operator_name(function: Any) -> str:
    """'aten.add' for any overload of aten::add."""
    return str(function._schema.name).replace("::", ".")


def _bind(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their schema names, defaults filled in."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(function._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with a tensor, positional or keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


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
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the with-block does to buffers (a forward in train mode moves statistics)."""
    before = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def run_tracer(model: nn.Module, inputs: Inputs) -> tuple[Tracer, dict[str, Tensor]]:
    """Trace the forward pass in eval mode, and in train mode what only runs there.

    Returns the tracer and the model's parameters and buffers by name. The model
    is left as it was.

    Raises:
        ModelError: forward fails on the example inputs.
    """
    tracer = Tracer()
    tensors = tensors_of(model)
    for name, tensor in tensors.items():
        tracer.register(name, tensor)
    with mode_kept(model, training=False):
        _run(tracer, model, inputs)
    if _has_unused_parameters(tracer, model):
        # Auxiliary heads run in train mode only; left out they would break the first training
        # step after a cut. Batch norm needs two samples there.
        tracer.forget_results(tensors)
        tracer.recording_sites = False
        doubled = _twice(inputs) if batch_size(inputs) == 1 else inputs
        with mode_kept(model, training=True), buffers_kept(model), torch.random.fork_rng([]):
            try:
                _run(tracer, model, doubled)
            except ModelError as err:
                log.warning("The forward pass fails in train mode, so it was left out: %s", err)
    return tracer, tensors


def _run(tracer: Tracer, model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        try:
            with _TraceMode(tracer):
                out = call_model(model, inputs)
        except Exception as err:  # a model's own code may raise anything
            if tracer.in_rule:
                raise  # not the model's fault but ours
            shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
            raise ModelError(
                f"The model's forward fails on example inputs of shape {shapes}: "
                f"{type(err).__name__}: {err}. Check 'model.input' and the model itself; "
                "it must run in eval mode on these inputs before it can be pruned."
            ) from err
        found = output_tensors(out)
        if not found:
            raise ModelError(
                f"The model's forward returns {type(out).__name__} and no tensor was found in it. "
                "Return a tensor, or tensors in lists, dictionaries or dataclasses."
            )
        for tensor in found:
            for ids in tracer.labels(tensor).dims:
                tracer.nodes.freeze(ids, "reaches the model's output")


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


def _has_unused_parameters(tracer: Tracer, model: nn.Module) -> bool:
    free = tracer.nodes.untouched()
    parameters = {name for name, _ in model.named_parameters()}
    return any(o.name in parameters and free[o.start] for o in tracer.nodes.owners)


def _twice(inputs: Inputs) -> Inputs:
    def double(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value

    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, Mapping):
        return {k: double(v) for k, v in inputs.items()}
    return [double(v) for v in inputs]
