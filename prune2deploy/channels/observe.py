"""Run a model with labels on its tensors: every operator is passed to its rule in rules/."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prune2deploy.channels import rules
from prune2deploy.channels.copying import copied
from prune2deploy.channels.forward import (
    CONTRACTIONS,
    PRODUCTS,
    Inputs,
    OperatorMode,
    batch_size,
    buffers_kept,
    call_model,
    mode_kept,
    operator_name,
    output_tensors,
    randomness_kept,
    to_meta,
)
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.places import here
from prune2deploy.channels.shapes import known_result
from prune2deploy.channels.tracer import Step, Tracer
from prune2deploy.errors import ModelError

log = logging.getLogger(__name__)

_FEW = 16
"""Entries of a constant made in forward that are compared one by one between two runs."""


@dataclass(frozen=True)
class Subject:
    """What is run: a model, its inputs, and whether only shapes are computed."""

    model: nn.Module
    inputs: Inputs
    on_meta: bool

    @functools.cached_property
    def names(self) -> dict[nn.Module, str]:
        """Name of every module."""
        return {module: name for name, module in self.model.named_modules()}


def without_values(model: nn.Module, inputs: Inputs) -> Subject:
    """The model and its inputs on the meta device: shapes only, so a run costs milliseconds."""
    memo: dict[int, object] = {}
    for tensor in tensors_of(model).values():
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return Subject(copied(model, memo), tree_map(to_meta, inputs), True)


class TraceMode(OperatorMode):
    """Passes each operator on, moves labels through it by its rule, and writes it down.

    pending: tensors that went into the operator that is running.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.in_rule = False
        self.pending: list[Tensor] = []

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        self.tracer.place = here()
        self.pending = rules.tensors_in(args) + rules.tensors_in(list(kwargs.values()))
        bound = _bind(function, args, kwargs)
        numbers = _numbers(function, bound, self.pending)
        if any(x.is_meta for x in self.pending) and not all(x.is_meta for x in self.pending):
            # What forward made on another device goes where the parameters are.
            args, kwargs = tree_map(to_meta, args), tree_map(to_meta, kwargs)
            bound = _bind(function, args, kwargs)
        out = self.call(function, args, kwargs, bound)
        self.in_rule = True
        self._follow(function, bound, numbers, out)
        self.in_rule = False
        return out

    def call(self, function: Any, args: Any, kwargs: Any, bound: Mapping[str, Any]) -> Any:
        """Compute the operator's result."""
        known = known_result(operator_name(function), bound)
        return function(*args, **kwargs) if known is None else known

    def _follow(
        self, function: Any, bound: dict[str, Any], numbers: tuple[float, ...], out: Any
    ) -> None:
        tracer, name = self.tracer, operator_name(function)
        read = rules.tensors_in(list(bound.values()))
        carried = tuple(tracer.labels(x) for x in read)
        if name in CONTRACTIONS:
            tracer.contractions += 1
        elif name not in PRODUCTS and not any(labels.labelled for labels in carried):
            tracer.steps.append(Step(name, numbers, (), (), tracer.place))
            return
        for labels in carried:
            if labels.parameter is not None:
                tracer.nodes.touched += [ids for ids in labels.dims if ids is not None]
        found = rules.find_rule(function)
        if found is None:
            tracer.unknown_ops[name] += 1
            rules.unknown(tracer, rules.Call(name, {}, out), carried)
        else:
            found(tracer, rules.Call(name, bound, out))
        results = tuple(tuple(tracer.labels(x).dims) for x in rules.tensors_in(out))
        tracer.steps.append(Step(name, numbers, results, carried, tracer.place))


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


@functools.cache
def _number_arguments(function: Any) -> tuple[str, ...]:
    """Names of an operator's arguments that can be numbers and are no lengths or dimensions.

    A number also arrives where the schema says Tensor.
    """
    return tuple(
        a.name
        for a in function._schema.arguments
        if str(a.type).removeprefix("Optional[").rstrip("]") in ("number", "float", "Tensor")
    )


def _numbers(
    function: Any, bound: Mapping[str, Any], tensors: Sequence[Tensor]
) -> tuple[float, ...]:
    """Plain numbers that enter the result, among them small constants made in forward."""
    found = [
        float(bound[name])
        for name in _number_arguments(function)
        if isinstance(bound.get(name), (int, float))
    ]
    if any(x.is_meta for x in tensors):
        for x in tensors:
            if not x.is_meta and x.numel() <= _FEW and not x.is_complex():
                found += x.double().flatten().tolist()
    return tuple(found)


def observe(mode: TraceMode, subject: Subject, train_too: bool | None) -> bool:
    """Run in eval mode, and in train mode where some parameters are used only there.

    Auxiliary heads run in train mode only; left out they would break the first training step
    after a cut. The model is left as it was.

    train_too: whether to run in train mode; None: if eval mode leaves parameters unused.

    Returns:
        whether the model ran in train mode.

    Raises:
        ModelError: forward returns no tensor. What forward itself raises goes through.
    """
    tracer = mode.tracer
    register_all(tracer, subject.model)
    watch(mode, subject)
    if train_too is None:
        train_too = _has_unused_parameters(tracer, subject.model) and _runs_in_train_mode(subject)
    if train_too:
        tracer.forget_results(tensors_of(subject.model))
        tracer.recording_sites = False
        with buffers_kept(subject.model), randomness_kept():
            watch(mode, _doubled(subject), training=True)
    return train_too


def register_all(tracer: Tracer, model: nn.Module) -> None:
    """Give every parameter and buffer its nodes; tables of whole numbers hold no channels."""
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point() or tensor.is_complex():
            tracer.register(name, tensor)


def watch(mode: TraceMode, subject: Subject, training: bool = False) -> Any:
    """Run the model under a mode; what reaches its output is frozen. Returns the output."""
    with torch.no_grad(), mode_kept(subject.model, training), mode:
        out = call_model(subject.model, subject.inputs)
    found = output_tensors(out)
    if not found:
        raise ModelError(
            f"The model's forward returns {type(out).__name__} and no tensor was found in it. "
            "Return a tensor, or tensors in lists, dictionaries or dataclasses."
        )
    tracer = mode.tracer
    for tensor in found:
        for ids in tracer.labels(tensor).dims:
            tracer.nodes.freeze(ids, "reaches the model's output")
        dims = tuple(tracer.labels(tensor).dims)
        lengths = tuple(float(n) for n in tensor.shape)
        tracer.steps.append(Step("output", lengths, (dims,), (), tracer.place))
    return out


def _runs_in_train_mode(subject: Subject) -> bool:
    try:
        with buffers_kept(subject.model), randomness_kept():
            watch(TraceMode(Tracer()), _doubled(subject), training=True)
    except Exception as err:  # a model's own code may raise anything
        log.warning("The forward pass fails in train mode, so it was left out: %s", err)
        return False
    return True


def _has_unused_parameters(tracer: Tracer, model: nn.Module) -> bool:
    free = tracer.nodes.untouched()
    parameters = {name for name, _ in model.named_parameters()}
    return any(o.name in parameters and free[o.start] for o in tracer.nodes.owners)


def _doubled(subject: Subject) -> Subject:
    """Two samples instead of one: batch norm needs two in train mode."""
    if batch_size(subject.inputs) > 1:
        return subject
    return Subject(subject.model, _twice(subject.inputs), subject.on_meta)


def _twice(inputs: Inputs) -> Inputs:
    def double(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value

    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, Mapping):
        return {k: double(v) for k, v in inputs.items()}
    return [double(v) for v in inputs]


def shapes_of(inputs: Inputs) -> list[tuple[int, ...]]:
    """Shapes of all tensors among the inputs, for messages."""
    return [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
