"""What a rule is, the table of them, and the one rule that serves all pointwise operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune2deploy.channels.labels import Labels, NodeIds
from prune2deploy.channels.tracer import Tracer


@dataclass
class Call:
    """One operator call: its arguments by their schema names, and what it returned."""

    name: str
    args: dict[str, Any]
    out: Any


Rule = Callable[[Tracer, Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names such as 'aten.cat' (all overloads)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in an argument or result, one level of lists deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_in(v)]
    return []


def dims_in(value: int | Sequence[int]) -> list[int]:
    """One dimension or several, as operators take them."""
    return [value] if isinstance(value, int) else list(value)


def pointwise(t: Tracer, call: Call) -> None:
    """Whatever is broadcast together, index by index, stays together."""
    inputs = [x for value in call.args.values() for x in tensors_in(value)]
    for out in tensors_in(call.out):
        if out.dim() == 0:
            continue
        dims: list[NodeIds | None] = [None] * out.dim()
        for back in range(1, out.dim() + 1):
            length = out.shape[-back]
            if length <= 1:
                continue
            seen: list[NodeIds | None] = [
                t.labels(x).dims[-back]
                for x in inputs
                if x.dim() >= back and x.shape[-back] == length and not _repeats(t, x, -back)
            ]
            if any(s is not None for s in seen):
                joined = seen[0]
                for other in seen[1:]:
                    joined = t.nodes.join(
                        joined, other, f"{call.name} with values that cannot be removed"
                    )
                dims[-back] = joined
        t.set(out, dims)


def _repeats(t: Tracer, x: Tensor, dim: int) -> bool:
    """Whether one entry stands for all along a dimension, as after expand_as.

    It is broadcast like one of length 1: fewer copies are as good. If the length was written
    down instead of computed, the trial of the cut finds out.
    """
    return t.labels(x).dims[dim] is None and x.layout == torch.strided and x.stride(dim) == 0


# Pointwise in effect, though PyTorch does not tag every form of them.
for _name in ("hardswish", "hardsigmoid", "hardtanh", "relu6", "celu", "prelu", "_prelu_kernel"):
    RULES[f"aten.{_name}"] = pointwise
for _name in ("bernoulli", "dropout", "feature_dropout", "fill", "zero", "masked_fill", "where"):
    RULES[f"aten.{_name}"] = pointwise


def find_rule(function: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator, or None where its effect on channels is unknown."""
    name = str(function._schema.name).replace("::", ".")
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in function.tags:
        return pointwise
    # In-place forms are not always tagged: aten.relu_ follows aten.relu.
    if name.endswith("_") and name[:-1] in RULES:
        return RULES[name[:-1]]
    if name.startswith("aten.") and name.endswith("_") and not name.endswith("__"):
        base = getattr(torch.ops.aten, name[len("aten.") : -1], None)
        overload = getattr(base, function._overloadname, None)
        if overload is not None and torch.Tag.pointwise in overload.tags:
            return pointwise
    return None


def unknown(t: Tracer, call: Call, labels: Sequence[Labels]) -> None:
    """No rule: nothing that goes in may be removed."""
    for one in labels:
        for ids in one.dims:
            t.nodes.freeze(ids, f"no rule for the operator {call.name}")
