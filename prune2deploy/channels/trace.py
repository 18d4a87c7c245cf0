"""`trace`: run a model once and find out which of its channels depend on one another.

The model runs below autograd, so anything that its forward does in Python (branches, loops,
modules called twice, functions instead of modules) is simply what happens. It runs on the
meta device, which computes shapes and no values; only if its forward needs values does it run
for real.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from torch import nn

from prune2deploy.channels.forward import Inputs
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import matches
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.observe import Subject, TraceMode, observe, shapes_of, without_values
from prune2deploy.channels.search import Search
from prune2deploy.channels.tracer import Tracer
from prune2deploy.channels.verify import Proof, check_exclude
from prune2deploy.errors import ModelError

log = logging.getLogger(__name__)


def trace(model: nn.Module, example_inputs: Inputs, exclude: Collection[str] = ()) -> Graph:
    """Find the groups of coupled channels of a model, and try them out.

    Args:
        model: any nn.Module; run in eval mode (and in train mode where some
            parameters are used only there), left as it was. Parameters with
            requires_grad=False are never touched.
        example_inputs: one tensor with a batch dimension, or the positional (list,
            tuple) or keyword (dict) arguments of forward.
        exclude: names or shell patterns of parameters or modules whose channels
            stay: 'classifier', 'layer4.*'.

    Raises:
        ModelError: forward fails on the example inputs, or a pattern in `exclude`
            matches nothing.
    """
    check_exclude(model, exclude)
    subject, tracer, train_too = _first_trace(model, example_inputs)
    search = Search(
        subject,
        tracer,
        train_too,
        _staying(model, exclude),
        Proof(model, example_inputs),
    )
    found = search.settle()
    return Graph(
        model,
        example_inputs,
        found.groups,
        found.frozen,
        dict(found.tracer.unknown_ops),
        tuple(found.tracer.sites),
        found.channel,
        found.followers,
    )


def _first_trace(model: nn.Module, inputs: Inputs) -> tuple[Subject, Tracer, bool]:
    """Trace without values if the model runs so, else with them.

    Returns:
        what ran, its trace, and whether that includes train mode.

    Raises:
        ModelError: it runs in neither way.
    """
    try:
        subject = without_values(model, inputs)
        mode = TraceMode(Tracer())
        return subject, mode.tracer, observe(mode, subject, None)
    except Exception as err:  # forward asks for values, or the model refuses to be copied
        log.debug("Not traced on the meta device: %s: %s", type(err).__name__, err)
    subject = Subject(model, inputs, on_meta=False)
    mode = TraceMode(Tracer())
    try:
        return subject, mode.tracer, observe(mode, subject, None)
    except ModelError:
        raise
    except Exception as err:  # a model's own code may raise anything
        if mode.in_rule:
            raise  # not the model's fault but ours
        raise ModelError(
            f"The model's forward fails on example inputs of shape {shapes_of(inputs)}: "
            f"{type(err).__name__}: {err}. Check 'model.input' and the model itself; "
            "it must run in eval mode on these inputs before it can be pruned."
        ) from err


def _staying(model: nn.Module, exclude: Collection[str]) -> Mapping[str, str]:
    """Tensors that must not be touched, and why."""
    stay = {}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for name in tensors_of(model):
        if any(matches(name, pattern) for pattern in exclude):
            stay[name] = f"excluded ({name})"
        elif not trained.get(name, True):
            stay[name] = (
                f"{name} has requires_grad=False; call requires_grad_(True) on it to let it be cut"
            )
    return stay
