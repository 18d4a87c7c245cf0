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
_Keys = npt.NDArray[np.uint64]


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
    why = _Reasons(nodes, component, count, stay)
    tensor_dim = np.zeros(nodes.size, dtype=np.int64)
    position = np.zeros(nodes.size, dtype=np.int64)
    for number, owner in enumerate(nodes.owners):
        tensor_dim[owner.start : owner.start + owner.size] = number
        position[owner.start : owner.start + owner.size] = np.arange(owner.size)
    members = _Members(component, tensor_dim, position, count)
    roles = nodes.role_of_nodes()
    groups: list[Group] = []
    frozen: list[Frozen] = []
    channel_of_component = np.full(count, FIXED, dtype=np.int64)
    names: set[str] = set()
    total = 0
    for family in members.families(_parts(nodes, component, count)):
        free, stuck = family[~why.frozen[family]], family[why.frozen[family]]
        if len(free) == 1:
            why.freeze(free, "a single channel")
            free, stuck = free[:0], family
        if len(free):
            slots = _slots(nodes, members, free, roles)
            name = _unused(_name(slots), names)
            groups.append(Group(name, len(free), slots, ()))
            channel_of_component[free] = np.arange(total, total + len(free))
            total += len(free)
        for reason, some in why.told(stuck):
            slots = _slots(nodes, members, some, roles)
            if any(slot.role == Role.PRODUCER for slot in slots):
                frozen.append(Frozen(_name(slots), len(some), reason))
    channel = channel_of_component[component] if nodes.size else component
    return _with_taps(groups, sites, channel), frozen, channel


class _Reasons:
    """Which components are frozen, and the first reason that is worth telling.

    frozen: shape (components,).
    """

    def __init__(
        self, nodes: NodeTable, component: NodeIds, count: int, stay: Mapping[str, str]
    ) -> None:
        self.frozen = np.zeros(count, dtype=np.bool_)
        self._texts: list[str] = []
        self._number: dict[str, int] = {}
        self._first = np.full(count, -1, dtype=np.int64)  # number of its reason, -1 for none
        for record in nodes.frozen:
            self.freeze(component[record.ids], record.reason)
        for owner in nodes.owners:
            if owner.name in stay:
                self.freeze(component[owner.start : owner.start + owner.size], stay[owner.name])
        # Kernel dimensions of a used weight are untouched too, but they are frozen already.
        unused = component[nodes.untouched()]
        self.freeze(unused, "the forward pass does not use it")

    def freeze(self, components: NodeIds, reason: str | None) -> None:
        self.frozen[components] = True
        if reason is None:
            return
        if reason not in self._number:
            self._number[reason] = len(self._texts)
            self._texts.append(reason)
        known = self._first[components]
        self._first[components] = np.where(known < 0, self._number[reason], known)

    def told(self, components: NodeIds) -> list[tuple[str, NodeIds]]:
        """Components by reason, in the order in which the reasons appear among them."""
        numbers = self._first[components]
        return [
            (self._texts[number], components[numbers == number])
            for number in dict.fromkeys(numbers.tolist())
            if number >= 0
        ]


class _Members:
    """Nodes of every component, sorted by tensor dimension and position."""

    def __init__(
        self, component: NodeIds, tensor_dim: NodeIds, position: NodeIds, count: int
    ) -> None:
        self.order = np.lexsort((position, tensor_dim, component))
        self.bounds = np.searchsorted(component[self.order], np.arange(count + 1))
        self._tensor_dim = tensor_dim[self.order]
        self._position = position[self.order]

    def families(self, parts: _Keys) -> list[NodeIds]:
        """Components that touch the same tensor dimensions equally often, in their order.

        parts: components whose key differs are kept apart as well.
        """
        count = len(parts)
        if not count:
            return []
        starts = self.bounds[:-1]
        rank = np.arange(len(self.order)) - np.repeat(starts, np.diff(self.bounds))
        entries = _scrambled(
            self._tensor_dim.astype(np.uint64) << np.uint64(32) | rank.astype(np.uint64)
        )
        keys = _scrambled(np.add.reduceat(entries, starts) + _scrambled(parts))
        _, first, family = np.unique(keys, return_index=True, return_inverse=True)
        by_first = np.argsort(np.argsort(first))  # families in the order of their first component
        family = by_first[family]
        ordered = np.argsort(family, kind="stable")
        return np.split(ordered, np.flatnonzero(np.diff(family[ordered])) + 1)

    def tables(self, family: NodeIds) -> list[tuple[int, IndexTable]]:
        """Per tensor dimension of a family of one footprint: positions (channels, copies)."""
        starts = self.bounds[family]
        width = int(self.bounds[family[0] + 1] - starts[0])
        block = starts[:, None] + np.arange(width)
        owners = self._tensor_dim[block]
        if (owners != owners[0]).any():
            raise AssertionError("two footprints have the same key")
        positions = self._position[block]
        return [(int(o), positions[:, owners[0] == o]) for o in np.unique(owners[0])]


def _scrambled(values: _Keys) -> _Keys:
    """Numbers of 64 bits that look random, so that sums of them stand for sets (splitmix64)."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: _Keys = x ^ (x >> np.uint64(31))
    return result


def _parts(nodes: NodeTable, component: NodeIds, count: int) -> _Keys:
    """Per component a number that says in which parts of splits it is; 0 for none."""
    found = np.zeros(count, dtype=np.uint64)
    for number, ids in enumerate(nodes.parts, 1):
        some = np.unique(component[ids[ids != FIXED]])
        found[some] = _scrambled(found[some] + np.uint64(number))
    return found


def _slots(
    nodes: NodeTable, members: _Members, family: NodeIds, roles: npt.NDArray[np.int8]
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
