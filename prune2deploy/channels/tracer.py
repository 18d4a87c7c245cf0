"""What is known while a model runs: the labels of every tensor, and who reads which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prune2deploy.channels.labels import Labels, NodeIds, NodeTable


@dataclass(frozen=True)
class Site:
    """One contraction (convolution or matrix product with a weight).

    number: the how-manieth contraction of the forward pass.
    tensor_key: which tensor it reads; two sites with one key read the same tensor.
    channel_dim: the dimension of that tensor that holds the channels.
    reads: node ids along that dimension, or None.
    parameter: the weight's name, or None where the weight is computed.
    factors: lengths whose product, times positions, is the multiply-accumulates of one
        forward pass of the example: the weight's dimensions, and those beside the
        channels that hold channels too. Each with its node ids, or None.
    """

    number: int
    tensor_key: int
    channel_dim: int
    reads: NodeIds | None
    parameter: str | None
    factors: tuple[tuple[NodeIds | None, int], ...]
    positions: int


@dataclass
class Tracer:
    """What the rules see: the node table, and the labels of every living tensor."""

    nodes: NodeTable = field(default_factory=NodeTable)
    sites: list[Site] = field(default_factory=list)
    unknown_ops: Counter[str] = field(default_factory=Counter)
    _labels: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    contractions: int = 0
    recording_sites: bool = True
    _keys: int = 0

    def labels(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; all None if nothing is known of it."""
        known: Labels | None = self._labels.get(tensor)
        if known is None:
            known = Labels([None] * tensor.dim(), tuple(tensor.shape), key=self._next_key())
            self._labels[tensor] = known
        return known

    def set(
        self, tensor: Tensor, dims: Sequence[NodeIds | None], parameter: str | None = None
    ) -> None:
        """Set a result's labels. A dimension of length 1 never carries any."""
        if len(dims) != tensor.dim():
            raise AssertionError(f"{len(dims)} labels for a tensor of {tensor.dim()} dimensions")
        kept = [ids if n > 1 else None for ids, n in zip(dims, tensor.shape, strict=True)]
        self._labels[tensor] = Labels(kept, tuple(tensor.shape), parameter, self._next_key())

    def add_site(self, read: Tensor, channel_dim: int, weight: Tensor, positions: int) -> None:
        """Write down a contraction that reads `read` and multiplies it with `weight`.

        positions: multiply-accumulates per entry of the weight, over the dimensions of
            `read` before channel_dim that carry no labels and the space after it.
        """
        if not self.recording_sites:
            return
        source = self.labels(read)
        known = self.labels(weight)
        factors = list(zip(known.dims, weight.shape, strict=True))
        for d in range(channel_dim):
            if source.dims[d] is None:
                positions *= read.shape[d]
            else:
                factors.append((source.dims[d], read.shape[d]))
        self.sites.append(
            Site(
                self.contractions - 1,
                source.key,
                channel_dim,
                source.dims[channel_dim],
                known.parameter,
                tuple(factors),
                positions,
            )
        )

    def register(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer its nodes."""
        labels = self.nodes.add_tensor(name, tensor.shape)
        labels.key = self._next_key()
        self._labels[tensor] = labels

    def forget_results(self, keep: Mapping[str, Tensor]) -> None:
        """Drop the labels of everything but parameters and buffers, between two runs."""
        kept = [(tensor, self._labels[tensor]) for tensor in keep.values()]
        self._labels = WeakTensorKeyDictionary()
        for tensor, labels in kept:
            self._labels[tensor] = labels

    def _next_key(self) -> int:
        self._keys += 1
        return self._keys
