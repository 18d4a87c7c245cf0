"""What is known while a model runs: the labels of every tensor, and who reads which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prune2deploy.channels.labels import Labels, NodeIds, NodeTable
from prune2deploy.channels.places import NOWHERE, Place

Choice = tuple[Place, str]
"""A line of code at which a dimension can be divided in several ways, and the kind of operator."""


_TURNS = 8
"""A line that runs more often, in a loop, is not looked at any more."""


@dataclass(frozen=True)
class Site:
    """One contraction (convolution or matrix product with a weight).

    number: the how-manieth contraction of the forward pass; -1 for a product of two
        activations, which is there for its cost only.
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


@dataclass(frozen=True)
class Step:
    """One operator of a run, for the comparison of two runs.

    numbers: its arguments that are plain numbers and enter the values.
    labels: per result and dimension, node ids or None.
    reads: labels of what went in.
    """

    name: str
    numbers: tuple[float, ...]
    labels: tuple[tuple[NodeIds | None, ...], ...]
    reads: tuple[Labels, ...]
    place: Place


@dataclass(frozen=True)
class Sight:
    """Where in a module's code a dimension was seen: dimension `dim` of a result.

    number: 0 for what went in, then its results; turn: the how-manieth time the line ran.
    """

    place: Place
    operator: str
    number: int
    dim: int
    turn: int


@dataclass
class Division:
    """How a line divided dimensions: the ways there are, those taken, and the channels it made."""

    ways: int = 0
    taken: set[int] = field(default_factory=set)
    channels: list[NodeIds] = field(default_factory=list)

    def everywhere(self, way: int) -> bool:
        """Whether this way was taken each time.

        Without a decision the longest dimension is taken, in one stage of a network the heads
        and in another their width; then neither has been tried for all.
        """
        return self.taken == {way}


@dataclass
class Tracer:
    """What the rules see: the node table, and the labels of every living tensor.

    decisions: for lines that can divide a dimension in several ways, which one to take.
    refusals: for such lines, why none of the ways is left.
    given_picks: for a narrowed model, what choose_axis chose each time in the whole model: the
        narrowed lengths must not change it.
    divisions: what became of each such line.
    """

    decisions: Mapping[Choice, int] = field(default_factory=dict)
    refusals: Mapping[Choice, str] = field(default_factory=dict)
    given_picks: Sequence[int | None] | None = None
    nodes: NodeTable = field(default_factory=NodeTable)
    picks: list[int | None] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    unknown_ops: Counter[str] = field(default_factory=Counter)
    divisions: dict[Choice, Division] = field(default_factory=dict)
    sights: dict[nn.Module, dict[Sight, NodeIds]] = field(default_factory=dict)
    place: Place = NOWHERE
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

    def choose(self, operator: str, ways: int, ids: NodeIds) -> int | None:
        """Which of several ways to divide `ids` at the present line; None: they must stay.

        The first way is the default. Where a later trial shows that the model's code does not
        allow it, the next one is taken.
        """
        choice = (self.place, operator)
        if choice in self.refusals:
            self.nodes.freeze(ids, self.refusals[choice])
            return None
        way = min(self.decisions.get(choice, 0), ways - 1)
        self._divide(choice, ways, way, ids)
        return way

    def choose_axis(self, operator: str, tables: Sequence[NodeIds]) -> int | None:
        """Which of several ways to group a dimension's entries into channels; None: they stay.

        tables: per way, shape (channels, copies): the entries in a row become one channel. The
            way with most channels is the default, of equals the first.
        """
        choice = (self.place, operator)
        way = self._pick(choice, [len(table) for table in tables])
        self.picks.append(way)
        if way is None:
            reason = self.refusals.get(choice, "a single channel")
            self.nodes.freeze(tables[0].reshape(-1), reason)
            return None
        self._divide(choice, len(tables), way, tables[way][:, 0])
        return way

    def longest(self, lengths: Sequence[int]) -> int:
        """Which length is greatest, of equals the first; in a narrowed model, which was."""
        given = self._given(len(lengths))
        way = given if given is not None else max(range(len(lengths)), key=lambda i: lengths[i])
        self.picks.append(way)
        return way

    def _given(self, ways: int) -> int | None:
        """What was picked at this turn in the whole model.

        A narrowed model that has already gone another way may have fewer ways here; then its
        picks mean nothing, and the comparison of the two runs says where they parted.
        """
        turn = len(self.picks)
        if self.given_picks is None or turn >= len(self.given_picks):
            return None
        given = self.given_picks[turn]
        return given if given is not None and given < ways else None

    def _pick(self, choice: Choice, channels: Sequence[int]) -> int | None:
        if self.given_picks is not None and len(self.picks) < len(self.given_picks):
            return self._given(len(channels))
        if choice in self.refusals:
            return None
        way = self.decisions.get(choice, max(range(len(channels)), key=lambda w: channels[w]))
        return way if way < len(channels) and channels[way] > 1 else None

    def _divide(self, choice: Choice, ways: int, way: int, ids: NodeIds) -> None:
        known = self.divisions.setdefault(choice, Division())
        known.ways = max(ways, known.ways)
        known.taken.add(way)
        known.channels.append(ids)

    def see(self, operator: str, results: Sequence[Tensor]) -> None:
        """Remember the labels of results whose lengths the module's code may state."""
        if not self.place.modules:
            return
        seen = self.sights.setdefault(self.place.modules[0], {})
        for number, result in enumerate(results):
            for dim, ids in enumerate(self.labels(result).dims):
                if ids is None:
                    continue
                turn = 0
                while (sight := Sight(self.place, operator, number, dim, turn)) in seen:
                    turn += 1
                    if turn == _TURNS:
                        return
                seen[sight] = ids

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

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Write down the cost of a batched product of two activations, (B, N, K) × (B, K, M)."""
        if self.recording_sites:
            left, right = self.labels(a), self.labels(b)
            factors = (
                *zip(left.dims, a.shape, strict=True),
                (right.dims[2], b.shape[2]),
            )
            self.sites.append(Site(-1, left.key, 2, left.dims[2], None, factors, 1))

    def register(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer its nodes."""
        labels = self.nodes.add_tensor(name, tensor.shape)
        labels.key = self._next_key()
        self._labels[tensor] = labels

    def forget_results(self, keep: Mapping[str, Tensor]) -> None:
        """Drop the labels of everything but parameters and buffers, between two runs."""
        kept = [(x, self._labels[x]) for x in keep.values() if x in self._labels]
        self._labels = WeakTensorKeyDictionary()
        for tensor, labels in kept:
            self._labels[tensor] = labels

    def _next_key(self) -> int:
        self._keys += 1
        return self._keys
