"""What can be cut together: trace, groups, plan, cut, mask."""

from prune2deploy.channels.cut import cut, mask
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import Frozen, Group, Slot, Tap
from prune2deploy.channels.labels import Role
from prune2deploy.channels.plan import Choice, Plan
from prune2deploy.channels.storage import load_pruned, load_weights, save_pruned, save_weights
from prune2deploy.channels.trace import trace
from prune2deploy.channels.verify import Trial, try_plan

__all__ = [
    "Choice",
    "Frozen",
    "Graph",
    "Group",
    "Plan",
    "Role",
    "Slot",
    "Tap",
    "Trial",
    "cut",
    "load_pruned",
    "load_weights",
    "mask",
    "save_pruned",
    "save_weights",
    "trace",
    "try_plan",
]
