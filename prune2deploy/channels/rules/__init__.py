"""How labels move through each ATen operator: one small rule per operator.

A rule gets the tracer and the bound call, joins what belongs together, and sets the
labels of the result. To add one, write a function with `@rule("aten.name")` in the file
of its kind, or for an operator of your own beside your model (examples/own_rule).
Pointwise operators need none: PyTorch tags them, and one rule serves them all.
"""

from prune2deploy.channels.rules import contractions, parts, shapes, values
from prune2deploy.channels.rules.base import (
    RULES,
    Call,
    Rule,
    find_rule,
    pointwise,
    rule,
    tensors_in,
    unknown,
)
from prune2deploy.channels.tracer import Tracer

__all__ = [
    "RULES",
    "Call",
    "Rule",
    "Tracer",
    "contractions",
    "find_rule",
    "parts",
    "pointwise",
    "rule",
    "shapes",
    "tensors_in",
    "unknown",
    "values",
]
