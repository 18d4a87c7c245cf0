"""Labels on tensor dimensions, and the union-find that the labels feed.

Every index of every parameter and buffer dimension is a node. While the model
runs, each tensor carries, per dimension, an array of node ids (one per index)
or None. Rules join nodes that can only be removed together.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NodeIds = npt.NDArray[np.int64]

FIXED = -1
"""In an array of node ids: an index that cannot be removed (zero padding, data)."""


class Role(enum.IntEnum):
    """What a parameter entry does for its channel."""

    OTHER = 0
    PRODUCER = 1  # a row that makes the channel: conv or linear weight and bias
    SCALE = 2  # batch norm's weight (gamma)
    SHIFT = 3  # batch norm's bias (beta)
    STATISTIC = 4  # batch norm's running mean and variance
    CONSUMER = 5  # a column that reads the channel


@dataclass
class Labels:
    """What one tensor carries.

    dims: per dimension the node ids, or None where nothing can be removed.
    shape: of the tensor when it was labelled.
    parameter: name of the parameter that the tensor is a view of, if it is one.
    key: number of the tensor, so that two readers of one tensor can be told apart
        from readers of two.
    """

    dims: list[NodeIds | None]
    shape: tuple[int, ...]
    parameter: str | None = None
    key: int = -1

    @property
    def labelled(self) -> bool:
        """Whether any dimension carries node ids."""
        return any(d is not None for d in self.dims)


@dataclass(frozen=True)
class Owner:
    """The tensor that a run of nodes belongs to: parameter or buffer `name`, dimension `dim`."""

    name: str
    dim: int
    start: int
    size: int


@dataclass
class FreezeRecord:
    """Nodes that must stay, and why. A reason of None is nobody's business (kernel dims)."""

    ids: NodeIds
    reason: str | None


@dataclass
class NodeTable:
    """All nodes, what was joined, and what was frozen.

    parts: node ids that a split keeps together; channels of different parts do not
        compete, so that no part is emptied.
    """

    owners: list[Owner] = field(default_factory=list)
    size: int = 0
    edges: list[tuple[NodeIds, NodeIds]] = field(default_factory=list)
    frozen: list[FreezeRecord] = field(default_factory=list)
    roles: list[tuple[NodeIds, Role]] = field(default_factory=list)
    touched: list[NodeIds] = field(default_factory=list)
    parts: list[NodeIds] = field(default_factory=list)
    _stay: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def add_tensor(self, name: str, shape: Sequence[int]) -> Labels:
        """Give each dimension longer than 1 fresh nodes; return the tensor's labels."""
        dims: list[NodeIds | None] = []
        for dim, length in enumerate(shape):
            if length <= 1:
                dims.append(None)
                continue
            self.owners.append(Owner(name, dim, self.size, length))
            dims.append(np.arange(self.size, self.size + length, dtype=np.int64))
            self.size += length
        return Labels(dims, tuple(shape), parameter=name)

    def freeze(self, ids: NodeIds | None, reason: str | None) -> None:
        """Forbid the removal of these nodes and of all that is joined to them."""
        if ids is None:
            return
        kept = ids[ids != FIXED]
        if kept.size:
            self.frozen.append(FreezeRecord(kept, reason))
            self._stay_so_far()[kept] = True

    def stay(self, ids: NodeIds) -> bool:
        """Whether all of these are frozen themselves; what they are joined to is not looked at."""
        return bool((self._stay_so_far()[ids] | (ids == FIXED)).all())

    def _stay_so_far(self) -> npt.NDArray[np.bool_]:
        if len(self._stay) < self.size:
            self._stay = np.append(self._stay, np.zeros(self.size - len(self._stay), np.bool_))
        return self._stay

    def join(self, a: NodeIds | None, b: NodeIds | None, reason: str) -> NodeIds | None:
        """Tie two equally long dimensions index by index.

        Where one side is fixed the other is frozen, for `reason`. Returns the
        labels of the result, or None where nothing is labelled.
        """
        if a is None or b is None:
            both = a if a is not None else b
            self.freeze(both, reason)
            return both
        if a is b:
            return a
        fixed_a, fixed_b = a == FIXED, b == FIXED
        live = ~(fixed_a | fixed_b)
        self.edges.append((a[live], b[live]))
        self.freeze(a[fixed_b], reason)
        self.freeze(b[fixed_a], reason)
        return np.where(fixed_a, b, a)

    def join_all(self, ids: NodeIds) -> None:
        """Tie all columns of a (channels, copies) array: each row becomes one channel."""
        for column in range(1, ids.shape[1]):
            self.join(ids[:, 0], ids[:, column], "tied to a fixed part of the same dimension")

    def mark(self, ids: NodeIds | None, role: Role) -> None:
        """Say what these nodes do; also that the forward pass uses them."""
        if ids is not None:
            live = ids[ids != FIXED]
            self.roles.append((live, role))
            self.touched.append(live)

    def components(self) -> NodeIds:
        """Number of the connected component of every node, shape (size,).

        Components are numbered in the order of their lowest node.
        """
        if not self.size:
            return np.zeros(0, dtype=np.int64)
        a = np.concatenate([e[0] for e in self.edges] or [np.zeros(0, np.int64)])
        b = np.concatenate([e[1] for e in self.edges] or [np.zeros(0, np.int64)])
        graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.size, self.size))
        _, component = connected_components(graph, directed=False)
        return component.astype(np.int64)

    def role_of_nodes(self) -> npt.NDArray[np.int8]:
        """Role of every node, shape (size,); the last mark wins."""
        roles = np.zeros(self.size, dtype=np.int8)
        for ids, role in self.roles:
            roles[ids] = role
        return roles

    def untouched(self) -> npt.NDArray[np.bool_]:
        """Nodes that no operator of the forward pass has read, shape (size,)."""
        free = np.ones(self.size, dtype=np.bool_)
        for ids in self.touched:
            free[ids] = False
        return free


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters, then all buffers, by their first name; a shared tensor appears once."""
    parameters: dict[int, tuple[str, torch.Tensor]] = {}
    buffers: dict[int, tuple[str, torch.Tensor]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for leaf, tensor in own.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (prefix + leaf, tensor))
    named = {**buffers, **parameters}  # what is both is a parameter
    return dict(named[key] for key in {**parameters, **buffers})
