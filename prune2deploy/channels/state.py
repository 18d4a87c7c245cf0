"""What has been decided about dividing a model's channels, and what it leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from prune2deploy.channels.groups import Frozen, Group
from prune2deploy.channels.labels import FIXED, FreezeRecord, NodeIds
from prune2deploy.channels.plan import Follower, Plan
from prune2deploy.channels.tracer import Choice, Sight, Tracer
from prune2deploy.channels.trial import Problem

Source = Sight | tuple[str, int]
"""Where a length is known from: seen in a module's code, or (tensor of the module, dimension)."""


@dataclass(frozen=True)
class Recipe:
    """In all modules of a class, an attribute follows the length that `source` has there."""

    kind: type[nn.Module]
    attribute: str
    source: Source


@dataclass(frozen=True)
class Tie:
    """In all modules of a class, two dimensions shrink alike.

    blocks: where the second is a multiple of the first: whether an entry of the first goes with
        a block of neighbours, as a head does, or with every n-th, as an entry of all heads.
    """

    kind: type[nn.Module]
    one: Source
    other: Source
    blocks: bool = False

    def pairs(self, a: NodeIds, b: NodeIds) -> list[tuple[NodeIds, NodeIds]]:
        """Nodes to join; none where the lengths do not fit."""
        if not len(a) or len(b) % len(a):
            return []
        table = b.reshape(len(a), -1).T if self.blocks else b.reshape(-1, len(a))
        return [(a[live], row[live]) for row in table for live in [(a != FIXED) & (row != FIXED)]]


@dataclass(frozen=True)
class State:
    """What has been decided so far.

    decisions: which way a line divides; tried: ways that did not do.
    ties: what shrinks alike.
    frozen: nodes of the whole model that stay, and why.
    turn: which of the trials that tell groups apart.
    """

    decisions: Mapping[Choice, int] = field(default_factory=dict)
    tried: frozenset[tuple[Choice, int]] = frozenset()
    refusals: Mapping[Choice, str] = field(default_factory=dict)
    recipes: tuple[Recipe, ...] = ()
    ties: tuple[Tie, ...] = ()
    frozen: tuple[FreezeRecord, ...] = ()
    turn: int = 0


@dataclass(frozen=True)
class Found:
    """What a state leads to, and the first problem of its trial."""

    state: State
    tracer: Tracer
    component: NodeIds
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    channel: NodeIds
    followers: tuple[Follower, ...]
    plan: Plan
    problem: Problem | None = None

    def better_than(self, other: Found) -> bool:
        """Whether the trial got further."""
        if self.problem is None or other.problem is None:
            return self.problem is None and other.problem is not None
        return self.problem.step > other.problem.step

    def group_of_node(self) -> NodeIds:
        """Per node the number of its group, or FIXED."""
        starts = np.cumsum([0, *(g.size for g in self.groups)])
        group = np.searchsorted(starts, self.channel, side="right") - 1
        return np.where(self.channel == FIXED, FIXED, group)

    def stays(self, ids: NodeIds) -> bool:
        """Whether none of these nodes can be removed."""
        return bool((picked(self.channel, ids) == FIXED).all())

    def stuck(self) -> set[Choice]:
        """Lines whose channels are all frozen."""
        return {
            choice
            for choice, division in self.tracer.divisions.items()
            if all(self.stays(ids) for ids in division.channels)
        }

    def left(self, ids: NodeIds) -> int:
        """How many of these nodes the trial's plan keeps."""
        kept = np.ones(len(self.channel) + 1, dtype=np.bool_)
        for owner in self.tracer.nodes.owners:
            stays = self.plan.keep.get(owner.name, {}).get(owner.dim)
            if stays is not None:
                kept[owner.start : owner.start + owner.size] = False
                kept[owner.start + stays] = True
        return int(kept[ids].sum())


def picked(values: NodeIds, ids: NodeIds) -> NodeIds:
    """values[ids], and FIXED where an id is FIXED."""
    extended: NodeIds = np.append(values, FIXED)
    result: NodeIds = extended[ids]
    return result


def lengths_of(module: nn.Module) -> list[tuple[str, int]]:
    """Attributes of a module that may state a length: whole numbers, alone and in lists."""
    found = []
    for name, value in vars(module).items():
        if isinstance(value, (list, tuple)):
            found += [
                (f"{name}[{i}]", entry)
                for i, entry in enumerate(value)
                if type(entry) is int and entry > 1
            ]
        elif type(value) is int and value > 1:
            found.append((name, value))
    return found
