"""`trace`: run a model once and find out which of its channels depend on one another.

The model runs for real, below autograd, so anything that its forward does in
Python (branches, loops, modules called twice, functions instead of modules) is
simply what happens. Each operator call is passed to its rule in rules/.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prune2deploy.channels import rules
from prune2deploy.channels.forward import (
    CONTRACTIONS,
    Inputs,
    OperatorMode,
    batch_size,
    buffers_kept,
    call_model,
    mode_kept,
    operator_name,
    output_tensors,
)
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import build_groups
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.tracer import Tracer
from prune2deploy.channels.verify import breaking_groups, check_exclude
from prune2deploy.errors import ModelError

log = logging.getLogger(__name__)


def trace(model: nn.Module, example_inputs: Inputs, exclude: Collection[str] = ()) -> Graph:
    """Find the groups of coupled channels of a model, and try them out.

    Args:
        model: any nn.Module; run in eval mode (and in train mode where some
            parameters are used only there), left as it was.
        example_inputs: one tensor with a batch dimension, or the positional (list,
            tuple) or keyword (dict) arguments of forward.
        exclude: names or shell patterns of parameters or modules whose channels
            stay: 'classifier', 'layer4.*'.

    Raises:
        ModelError: forward fails on the example inputs, or a pattern in `exclude`
            matches nothing.
    """
    check_exclude(model, exclude)
    tracer = run_tracer(model, example_inputs)
    groups, frozen, channel = build_groups(tracer.nodes, tracer.sites, exclude)
    graph = Graph(
        model,
        example_inputs,
        tuple(groups),
        tuple(frozen),
        dict(tracer.unknown_ops),
        tuple(tracer.sites),
        channel,
    )
    return graph.without(breaking_groups(graph))


class _TraceMode(OperatorMode):
    """Passes each operator on, and moves labels through it by its rule."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self.in_rule = False

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        self.in_rule = True
        _follow(self._tracer, function, args, kwargs, out)
        self.in_rule = False
        return out


def _follow(tracer: Tracer, function: Any, args: Any, kwargs: Any, out: Any) -> None:
    name = operator_name(function)
    inputs = rules.tensors_in(args) + rules.tensors_in(list(kwargs.values()))
    carried = [tracer.labels(x) for x in inputs]
    if name in CONTRACTIONS:
        tracer.contractions += 1
    elif not any(labels.labelled for labels in carried):
        return
    for labels in carried:
        if labels.parameter is not None:
            tracer.nodes.touched += [ids for ids in labels.dims if ids is not None]
    call = rules.Call(name, {}, out)
    found = rules.find_rule(function)
    if found is None:
        tracer.unknown_ops[name] += 1
        rules.unknown(tracer, call, carried)
        return
    call.args = _bind(function, args, kwargs)
    found(tracer, call)


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


def run_tracer(model: nn.Module, inputs: Inputs) -> Tracer:
    """Trace the forward pass in eval mode, and in train mode what only runs there.

    The model is left as it was.

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
    return tracer


def _run(tracer: Tracer, model: nn.Module, inputs: Inputs) -> None:
    mode = _TraceMode(tracer)
    with torch.no_grad():
        try:
            with mode:
                out = call_model(model, inputs)
        except Exception as err:  # a model's own code may raise anything
            if mode.in_rule:
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
