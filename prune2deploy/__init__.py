"""From a trained PyTorch vision model to a smaller, measured ONNX model.

The names below are loaded when first used, so that importing the package (and
`prune2deploy --help`) costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune2deploy.channels import Graph, Plan, cut, load_pruned, mask, save_pruned, trace
    from prune2deploy.export import fold_batchnorm
    from prune2deploy.pipeline.weights import weight_masks
    from prune2deploy.planning.plan import plan, prepare
    from prune2deploy.planning.timed.plan import plan_for_time

__version__ = "0.1.0"

_HOME = {
    "Graph": "prune2deploy.channels",
    "Plan": "prune2deploy.channels",
    "cut": "prune2deploy.channels",
    "fold_batchnorm": "prune2deploy.export",
    "load_pruned": "prune2deploy.channels",
    "mask": "prune2deploy.channels",
    "plan": "prune2deploy.planning.plan",
    "plan_for_time": "prune2deploy.planning.timed.plan",
    "prepare": "prune2deploy.planning.plan",
    "save_pruned": "prune2deploy.channels",
    "trace": "prune2deploy.channels",
    "weight_masks": "prune2deploy.pipeline.weights",
}

__all__ = [
    "Graph",
    "Plan",
    "__version__",
    "cut",
    "fold_batchnorm",
    "load_pruned",
    "mask",
    "plan",
    "plan_for_time",
    "prepare",
    "save_pruned",
    "trace",
    "weight_masks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'prune2deploy' has no attribute '{name}'")
