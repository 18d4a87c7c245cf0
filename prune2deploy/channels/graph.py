"""The graph: what can be cut in a model, what it costs, and what must stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from prune2deploy.channels.cost import CostModel, Counts
from prune2deploy.channels.forward import Inputs, batch_size
from prune2deploy.channels.groups import Frozen, Group, IndexTable
from prune2deploy.channels.labels import NodeIds, Role, tensors_of
from prune2deploy.channels.plan import Follower, Plan, plan_from_kept
from prune2deploy.channels.tracer import Site


@dataclass(frozen=True)
class Graph:
    """What can be cut in a model.

    groups: coupled channels, in the order of the model.
    frozen: channels that stay, with the reason.
    unknown_ops: operators without a rule and how often they were met; what went
        into them is frozen.
    followers: attributes of the model's modules that state a width and follow a cut.
    model, inputs: what was traced; the model is not modified.
    """

    model: nn.Module
    inputs: Inputs
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    unknown_ops: Mapping[str, int]
    sites: tuple[Site, ...]
    channel_of_node: NodeIds
    followers: tuple[Follower, ...] = ()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer."""
        return {name: tuple(t.shape) for name, t in tensors_of(self.model).items()}

    @cached_property
    def cost(self) -> CostModel:
        """MACs and parameters as functions of kept channels per group."""
        parameters = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
        batch = batch_size(self.inputs)
        return CostModel(self.groups, self.sites, self.channel_of_node, parameters, batch)

    @property
    def full(self) -> Counts:
        """All channels of every group."""
        return self.cost.full

    def counts(self, plan: Plan) -> Counts:
        """Kept channels per group in a plan made from this graph."""
        kept = {c.group: c.kept for c in plan.choices}
        return np.array([kept[g.name] for g in self.groups], dtype=np.int64)

    def kept(self, plan: Plan) -> list[IndexTable]:
        """Per group the channels that stay in a plan made from this graph, ascending."""
        found = []
        for group in self.groups:
            slot = group.slots[0]
            stays = plan.keep.get(slot.tensor, {}).get(slot.dim)
            every = np.arange(group.size)
            found.append(every if stays is None else every[np.isin(slot.index[:, 0], stays)])
        return found

    def width_steps(self, number: int, round_to: int) -> list[int]:
        """Channel counts that group `number` may keep so that widths are multiples.

        Descending; the full count always comes first. What is rounded is the width of
        the layers that produce the group: fixed channels beside it count as well.
        """
        group = self.groups[number]
        slot = next((s for s in group.slots if s.role == Role.PRODUCER), group.slots[0])
        beside = self.shapes[slot.tensor][slot.dim] - slot.index.size
        if any(
            (s.tensor, s.dim) == (slot.tensor, slot.dim)
            for n, other in enumerate(self.groups)
            if n != number
            for s in other.slots
        ):
            beside = 0  # the others there are rounded too, each for itself
        copies = slot.index.shape[1]
        below = [k for k in range(group.size - 1, 0, -1) if (beside + k * copies) % round_to == 0]
        return [group.size, *below]

    def layers_of(self, number: int) -> int:
        """How many layers with weights produce the channels of group `number`; one at least."""
        weights = {
            slot.tensor
            for slot in self.groups[number].slots
            if slot.role == Role.PRODUCER and len(self.shapes[slot.tensor]) > 1
        }
        return max(1, len(weights))

    def plan(self, kept: Sequence[IndexTable], notes: Sequence[str] = ()) -> Plan:
        """The plan that keeps these channels (indices into each group)."""
        return plan_from_kept(self.groups, kept, self.shapes, notes, self.followers)
