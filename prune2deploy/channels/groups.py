"""From joined nodes to groups of channels that a planner can choose from.

A component of joined nodes is a channel: the smallest thing that can be removed.
Channels that touch the same parameters in the same dimensions are
interchangeable and form a group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from prune2deploy.channels.labels import FIXED, NodeIds, NodeTable, Role
from prune2deploy.channels.tracer import Site

IndexTable = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Slot:
    """Where a group's channels live in one dimension of one parameter or buffer.

    index has shape (channels, copies): row c lists the entries of channel c.
    After a flatten, for example, a channel owns height × width columns.
    """

    tensor: str
    dim: int
    role: Role
    index: IndexTable


@dataclass(frozen=True)
class Tap:
    """Where a group's channels appear in the activations: what site `site` reads.

    index has shape (channels, copies), along dimension `dim` of that tensor.
    """

    site: int
    dim: int
    index: IndexTable


@dataclass(frozen=True)
class Group:
    """Coupled channels that compete with one another.

    name: the first layer that produces them.
    size: how many channels there are to choose from.
    slots: every parameter and buffer entry they own.
    taps: every activation they appear in that some layer reads, each tensor once.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    taps: tuple[Tap, ...]

    def of_role(self, role: Role) -> list[Slot]:
        """The slots with this role."""
        return [slot for slot in self.slots if slot.role == role]

    @property
    def layers(self) -> list[str]:
        """Names of the modules that own a slot, in the order of the model."""
        return list(dict.fromkeys(s.tensor.rpartition(".")[0] or s.tensor for s in self.slots))


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed: the layer that produces them, how many, and why."""

    name: str
    size: int
    reason: str


def build_groups(
    nodes: NodeTable, component: NodeIds, sites: Collection[Site], stay: Mapping[str, str]
) -> tuple[list[Group], list[Frozen], NodeIds]:
    """Return the groups, what is frozen, and per node the channel it belongs to.

    A channel is numbered over all groups in their order; FIXED marks nodes that stay.

    Args:
        component: per node the number of its component, from nodes.components().
        stay: tensors that must not be touched, and why.
    """
    count = int(component.max()) + 1 if nodes.size else 0
    reasons = _frozen_components(nodes, component, stay)
    tensor_dim = np.zeros(nodes.size, dtype=np.int64)
    position = np.zeros(nodes.size, dtype=np.int64)
    for number, owner in enumerate(nodes.owners):
        tensor_dim[owner.start : owner.start + owner.size] = number
        position[owner.start : owner.start + owner.size] = np.arange(owner.size)
    members = _Members(component, tensor_dim, position, count)

    in_parts = _parts(nodes, component)
    families: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}
    for c in range(count):
        families.setdefault((members.footprint(c), in_parts.get(c, ())), []).append(c)
    roles = nodes.role_of_nodes()
    groups: list[Group] = []
    frozen: list[Frozen] = []
    channel_of_component = np.full(count, FIXED, dtype=np.int64)
    names: set[str] = set()
    total = 0
    for family in families.values():
        free = [c for c in family if c not in reasons]
        stuck = [c for c in family if c in reasons]
        if len(free) == 1:
            reasons[free[0]] = "a single channel"
            free, stuck = [], sorted([*stuck, *free])
        if free:
            slots = _slots(nodes, members, free, roles)
            name = _unused(_name(slots), names)
            groups.append(Group(name, len(free), slots, ()))
            channel_of_component[free] = np.arange(total, total + len(free))
            total += len(free)
        by_reason: dict[str, list[int]] = {}
        for c in stuck:
            reason = reasons[c]
            if reason is not None:
                by_reason.setdefault(reason, []).append(c)
        for reason, some in by_reason.items():
            slots = _slots(nodes, members, some, roles)
            if any(slot.role == Role.PRODUCER for slot in slots):
                frozen.append(Frozen(_name(slots), len(some), reason))
    channel = channel_of_component[component] if nodes.size else component
    return _with_taps(groups, sites, channel), frozen, channel


class _Members:
    """Nodes of every component, sorted by tensor dimension and position."""

    def __init__(
        self, component: NodeIds, tensor_dim: NodeIds, position: NodeIds, count: int
    ) -> None:
        self.order = np.lexsort((position, tensor_dim, component))
        self.bounds = np.searchsorted(component[self.order], np.arange(count + 1))
        self._tensor_dim = tensor_dim[self.order]
        self._position = position[self.order]

    def nodes(self, c: int) -> NodeIds:
        return self.order[self.bounds[c] : self.bounds[c + 1]]

    def footprint(self, c: int) -> bytes:
        """Which tensor dimensions the component touches, and how often each."""
        return self._tensor_dim[self.bounds[c] : self.bounds[c + 1]].tobytes()

    def tables(self, family: list[int]) -> list[tuple[int, IndexTable]]:
        """Per tensor dimension of a family of one footprint: positions (channels, copies)."""
        starts = self.bounds[family]
        width = int(self.bounds[family[0] + 1] - starts[0])
        block = starts[:, None] + np.arange(width)
        owners = self._tensor_dim[block[0]]
        positions = self._position[block]
        return [(int(o), positions[:, owners == o]) for o in np.unique(owners)]


def _parts(nodes: NodeTable, component: NodeIds) -> dict[int, tuple[int, ...]]:
    """Numbers of the parts that each component is in, where it is in any."""
    found: dict[int, tuple[int, ...]] = {}
    for number, ids in enumerate(nodes.parts):
        for c in np.unique(component[ids[ids != FIXED]]).tolist():
            found[c] = (*found.get(c, ()), number)
    return found


def _slots(
    nodes: NodeTable, members: _Members, family: list[int], roles: npt.NDArray[np.int8]
) -> tuple[Slot, ...]:
    slots = []
    for number, index in members.tables(family):
        owner = nodes.owners[number]
        role = Role(int(roles[owner.start + index[0, 0]]))
        slots.append(Slot(owner.name, owner.dim, role, index))
    return tuple(slots)


def _unused(name: str, names: set[str]) -> str:
    """The name, numbered if another group of the same layer has it already."""
    unused, number = name, 1
    while unused in names:
        number += 1
        unused = f"{name}#{number}"
    names.add(unused)
    return unused


def _name(slots: tuple[Slot, ...]) -> str:
    first = next((s for s in slots if s.role == Role.PRODUCER), slots[0])
    return first.tensor.rpartition(".")[0] or first.tensor


def _frozen_components(
    nodes: NodeTable, component: NodeIds, stay: Mapping[str, str]
) -> dict[int, str | None]:
    """Frozen components and the first reason that is worth telling."""
    reasons: dict[int, str | None] = {}

    def freeze(ids: NodeIds, reason: str | None) -> None:
        for c in np.unique(component[ids]).tolist():
            if reasons.get(c) is None:
                reasons[c] = reason

    for record in nodes.frozen:
        freeze(record.ids, record.reason)
    for owner in nodes.owners:
        if owner.name in stay:
            freeze(np.arange(owner.start, owner.start + owner.size), stay[owner.name])
    unused = np.flatnonzero(nodes.untouched())
    # Kernel dimensions of a used weight are untouched too, but they are frozen already.
    freeze(unused, "the forward pass does not use it")
    return reasons


def matches(tensor: str, pattern: str) -> bool:
    """Whether a pattern names this parameter, its module, or a module around it.

    'layer1' takes all of layer1; 'layer?.0.conv*' uses shell wildcards.
    """
    parts = tensor.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _with_taps(groups: list[Group], sites: Collection[Site], channel: NodeIds) -> list[Group]:
    """Add to each group the activations it appears in, each tensor once."""
    starts = np.cumsum([0] + [g.size for g in groups])
    taps: list[list[Tap]] = [[] for _ in groups]
    seen: set[tuple[int, int]] = set()
    for site in sites:
        if site.reads is None or site.parameter is None:
            continue
        live = site.reads != FIXED
        along = np.full(len(site.reads), FIXED, dtype=np.int64)
        along[live] = channel[site.reads[live]]
        owner = np.searchsorted(starts, along, side="right") - 1
        for g in np.unique(owner[along != FIXED]).tolist():
            if (g, site.tensor_key) in seen:
                continue
            where = np.flatnonzero((owner == g) & (along != FIXED))
            local = along[where] - starts[g]
            order = np.argsort(local, kind="stable")
            copies = len(where) / groups[g].size
            if copies != int(copies) or (np.bincount(local) != copies).any():
                continue  # seen only in part here; another tap shows all of it
            seen.add((g, site.tensor_key))
            index = where[order].reshape(groups[g].size, int(copies))
            taps[g].append(Tap(site.number, site.channel_dim, index))
    return [Group(g.name, g.size, g.slots, tuple(t)) for g, t in zip(groups, taps, strict=True)]
