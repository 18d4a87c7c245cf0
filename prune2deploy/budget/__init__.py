"""How many channels each group keeps, given scores, a budget and the widths that are allowed."""

from prune2deploy.budget.cost import keep_under_cost
from prune2deploy.budget.scores import comparable
from prune2deploy.budget.shares import keep_shares
from prune2deploy.budget.widths import Decision, Widths, allowed_counts, best

__all__ = [
    "Decision",
    "Widths",
    "allowed_counts",
    "best",
    "comparable",
    "keep_shares",
    "keep_under_cost",
]
