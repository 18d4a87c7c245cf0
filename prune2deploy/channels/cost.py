"""Multiply-accumulates, parameters and widths of a plan, from channel counts alone.

Nothing is cut to know them: every length of every weight is a fixed part plus,
for each group, copies × kept channels, so a plan's cost is a product of a few
linear forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prune2deploy.channels.groups import Group
from prune2deploy.channels.labels import FIXED, NodeIds
from prune2deploy.channels.tracer import Site

Counts = npt.NDArray[np.int64]
"""Kept channels per group, in the order of the graph's groups, shape (groups,)."""


@dataclass(frozen=True)
class _Products:
    """Sum over rows of weight × product over columns of (base + copies @ kept).

    weight (rows,), base (rows, dims), copies (rows, dims, groups).
    """

    weight: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    copies: npt.NDArray[np.float64]

    def total(self, kept: Counts) -> int:
        lengths = self.base + self.copies @ kept
        return round(float((self.weight * lengths.prod(axis=1)).sum()))

    def soft_total(self, kept: Tensor) -> Tensor:
        weight, base, copies = (
            torch.from_numpy(array).to(kept) for array in (self.weight, self.base, self.copies)
        )
        return (weight * (base + copies @ kept).prod(dim=1)).sum()


class CostModel:
    """Costs of a model as functions of how many channels each group keeps.

    MACs count one fused multiply-add of convolution and linear layers as 1, for
    one sample. Parameters are trainable ones; buffers are not counted.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        sites: Sequence[Site],
        channel: NodeIds,
        parameters: Mapping[str, tuple[int, ...]],
        batch: int,
    ) -> None:
        self.full: Counts = np.array([g.size for g in groups], dtype=np.int64)
        self._starts = np.cumsum([0, *self.full.tolist()])
        self._macs = self._of_sites(sites, channel, batch)
        self._rows = {name: row for row, name in enumerate(parameters)}
        self._params = self._of_parameters(groups, parameters)

    def macs(self, kept: Counts) -> int:
        """Multiply-accumulates of one sample."""
        return self._macs.total(kept)

    def soft_macs(self, kept: Tensor) -> Tensor:
        """`macs` of counts that need not be whole, with a gradient; a scalar of their type.

        Args:
            kept: per group how many channels are kept, shape (groups,), any float dtype.
        """
        return self._macs.soft_total(kept)

    def params(self, kept: Counts) -> int:
        """Number of parameters."""
        return self._params.total(kept)

    def length(self, parameter: str, dim: int) -> npt.NDArray[np.float64] | None:
        """How long a parameter's dimension is as a linear form of the kept counts.

        Returns:
            Shape (1 + groups,): the fixed part, then what each kept channel of a group adds; None
            where there is no such parameter.
        """
        row = self._rows.get(parameter)
        if row is None or dim >= self._params.base.shape[1]:
            return None
        return np.concatenate([[self._params.base[row, dim]], self._params.copies[row, dim]])

    def _of_sites(self, sites: Sequence[Site], channel: NodeIds, batch: int) -> _Products:
        depth = max((len(s.factors) for s in sites), default=0)
        base = np.ones((len(sites), depth))
        copies = np.zeros((len(sites), depth, len(self.full)))
        weight = np.array([s.positions / batch for s in sites])
        for row, site in enumerate(sites):
            for dim, (ids, length) in enumerate(site.factors):
                base[row, dim] = length
                if ids is None:
                    continue
                mine = channel[ids[ids != FIXED]]
                mine = mine[mine != FIXED]
                base[row, dim] -= len(mine)
                owner = np.searchsorted(self._starts, mine, side="right") - 1
                found = np.bincount(owner, minlength=len(self.full)).astype(np.float64)
                copies[row, dim] = found / np.maximum(self.full, 1)
        return _Products(weight, base, copies)

    def _of_parameters(
        self, groups: Sequence[Group], parameters: Mapping[str, tuple[int, ...]]
    ) -> _Products:
        depth = max((len(s) for s in parameters.values()), default=0)
        base = np.ones((len(parameters), depth))
        copies = np.zeros((len(parameters), depth, len(self.full)))
        for name, shape in parameters.items():
            base[self._rows[name], : len(shape)] = shape
        for number, group in enumerate(groups):
            for slot in group.slots:
                row = self._rows.get(slot.tensor)
                if row is not None:
                    copies[row, slot.dim, number] = slot.index.shape[1]
                    base[row, slot.dim] -= slot.index.size
        return _Products(np.ones(len(parameters)), base, copies)
