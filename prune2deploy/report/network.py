"""A graph layer by layer: who produces which group, who reads it, and what is frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from prune2deploy.channels import Graph, Role
from prune2deploy.channels.labels import FIXED, NodeIds
from prune2deploy.channels.observe import register_all
from prune2deploy.channels.tracer import Site, Tracer

TIED = "tied to other channels that stay"


@dataclass
class Layer:
    """A module that makes channels, or a parameter that forward uses directly.

    name: for people. module: name of the module that owns its weight.
    kind: what it is, in few words. inputs, outputs: channels.
    parts: per group (its number in the graph) how many of the outputs are in it; None
        stands for those that stay.
    reads: groups that it reads. reads_frozen: layers whose frozen channels it reads.
    beside: norms and direct parameters that go with its channels.
    calls: how often the traced forward pass runs it; 0 if it does not (an auxiliary head).
    macs: multiply-accumulates, for the whole batch of the example.
    """

    name: str
    module: str
    kind: str
    inputs: int
    outputs: int
    parts: Counter[int | None] = field(default_factory=Counter)
    reads: set[int] = field(default_factory=set)
    reads_frozen: set[str] = field(default_factory=set)
    beside: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    calls: int = 0
    macs: float = 0.0

    @property
    def groups(self) -> list[int]:
        """The groups that it produces, in the order of the graph."""
        return sorted(number for number in self.parts if number is not None)


class Network:
    """The layers of a graph, in the order in which they run.

    One that the traced forward pass does not run, such as an auxiliary head, stands behind what
    it reads.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._modules: dict[str, nn.Module] = dict(graph.model.named_modules())
        sizes = [group.size for group in graph.groups]
        self._group_starts = np.cumsum([0, *sizes])
        self._owners = _Owners(graph.model)
        self._roles = {(s.tensor, s.dim): s.role for g in graph.groups for s in g.slots}
        self._layers: dict[str, Layer] = {}
        for site in graph.sites:
            self._add_site(site)
        self._add_producers()
        self._add_frozen()
        self._add_readers()
        self.layers = self._in_order()
        self._attach()

    @cached_property
    def producers(self) -> list[list[Layer]]:
        """Per group the layers that produce it."""
        return [[x for x in self.layers if n in x.parts] for n in range(len(self.graph.groups))]

    @cached_property
    def readers(self) -> list[list[Layer]]:
        """Per group the layers that read it."""
        return [[x for x in self.layers if n in x.reads] for n in range(len(self.graph.groups))]

    def norms(self, number: int) -> list[str]:
        """Norms over the channels of a group."""
        return self._with_roles(number, Role.SCALE, Role.SHIFT, Role.STATISTIC)

    def parameters(self, number: int) -> list[str]:
        """Parameters that forward uses directly and that hold channels of a group."""
        return self._with_roles(number, Role.OTHER)

    def _with_roles(self, number: int, *roles: Role) -> list[str]:
        slots = self.graph.groups[number].slots
        names = dict.fromkeys(self.label(slot.tensor) for slot in slots if slot.role in roles)
        return [name for name in names if name not in self._layers]

    def size_text(self, number: int) -> str:
        """Channels of a group; '3 × 8' where each takes eight of a layer's."""
        group = self.graph.groups[number]
        copies = next((slot.index.shape[1] for slot in group.of_role(Role.PRODUCER)), 1)
        return f"{group.size}" if copies == 1 else f"{group.size} × {copies}"

    @property
    def coupled(self) -> list[bool]:
        """Per group whether several layers produce it."""
        return [len(layers) > 1 for layers in self.producers]

    def channels(self) -> tuple[int, int]:
        """Output channels over all layers: those that can be cut, and all."""
        free = sum(x.outputs - x.parts[None] for x in self.layers)
        return free, sum(x.outputs for x in self.layers)

    def macs_share(self) -> float:
        """Share of the multiply-accumulates in layers some of whose output can be cut."""
        total = sum(x.macs for x in self.layers)
        return sum(x.macs for x in self.layers if x.groups) / total if total else 0.0

    def params_share(self) -> float:
        """Share of the parameters in tensors that produce, scale or shift such channels."""
        moved = {s.tensor for g in self.graph.groups for s in g.slots if s.role != Role.CONSUMER}
        sizes = {name: p.numel() for name, p in self.graph.model.named_parameters()}
        total = sum(sizes.values())
        return sum(n for name, n in sizes.items() if name in moved) / total if total else 0.0

    def label(self, tensor: str) -> str:
        """What people call the owner of a tensor: 'layer1.0.conv1', 'attn.in_proj_weight'."""
        module, leaf = _split(tensor)
        shared = any(True for _ in self._modules[module].children())
        return tensor if shared and leaf not in ("weight", "bias") else module or tensor

    def _groups_of(self, ids: NodeIds | None) -> Counter[int | None]:
        if ids is None:
            return Counter()
        channel = np.where(ids == FIXED, FIXED, self.graph.channel_of_node[ids])
        number = np.searchsorted(self._group_starts, channel, side="right") - 1
        number[channel == FIXED] = FIXED
        values, counts = np.unique(number, return_counts=True)
        return Counter(
            {
                (None if value == FIXED else int(value)): int(count)
                for value, count in zip(values, counts, strict=True)
            }
        )

    def _add_site(self, site: Site) -> None:
        if site.number < 0:
            return  # a product of two activations has no weight
        tensor = site.parameter or self._owners.weight_of(site)
        if tensor is None:
            return
        name = self.label(tensor)
        module = self._modules[_split(tensor)[0]]
        ids, outputs, inputs = self._ends(site, tensor, module)
        layer = self._layers.get(name)
        if layer is None:
            kind = kind_of(module)
            layer = Layer(name, _split(tensor)[0], kind, inputs, outputs, self._groups_of(ids))
            layer.parts[None] += outputs - layer.parts.total()
            self._layers[name] = layer
        layer.calls += 1
        lengths = [float(length) for _, length in site.factors]
        layer.macs += float(np.prod(lengths)) * site.positions
        reads = self._groups_of(site.reads)
        layer.reads |= {number for number in reads if number is not None}
        if None in reads and site.reads is not None:
            stay = site.reads[site.reads != FIXED]
            stay = stay[self.graph.channel_of_node[stay] == FIXED]
            layer.reads_frozen |= {self.label(t) for t in self._owners.tensors(stay)}

    def _ends(self, site: Site, tensor: str, module: nn.Module) -> tuple[NodeIds | None, int, int]:
        """Nodes of the outputs of a site, their number, and the number of its inputs."""
        first, second = site.factors[:2]
        if len(self.graph.shapes[tensor]) > 2:
            groups = getattr(module, "groups", 1)
            # One of a kernel's dimensions holds the channels of one convolution group only.
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                return second[0], second[1] * groups, first[1]
            return first[0], first[1], second[1] * groups
        # Some matrix products see their weight transposed.
        rows, columns = (first, second) if self._makes(site, 0) else (second, first)
        return rows[0], rows[1], columns[1]

    def _makes(self, site: Site, number: int) -> bool:
        """Whether this dimension of the weight of a matrix product is that of its outputs."""
        places = [self._owners.place(ids) for ids, _ in site.factors[:2]]
        for one, place in enumerate(places):
            role = self._roles.get(place) if place else None
            if role in (Role.PRODUCER, Role.CONSUMER):
                return (one == number) == (role == Role.PRODUCER)
        lengths = [length for _, length in site.factors[:2]]
        if site.reads is not None and lengths[0] != lengths[1]:
            return lengths[number] != len(site.reads)
        # All of it is frozen and square: PyTorch's own layers have their outputs first.
        mine = places[number]
        return mine is not None and mine[1] == 0

    def _add_producers(self) -> None:
        """Those that the traced pass does not run."""
        running = {layer.module for layer in self._layers.values()}
        for number, group in enumerate(self.graph.groups):
            for slot in group.of_role(Role.PRODUCER):
                name, shape = self.label(slot.tensor), self.graph.shapes[slot.tensor]
                if len(shape) == 1 and _split(slot.tensor)[0] in running:
                    continue  # the bias of a layer that is known by its weight
                layer = self._layers.get(name) or self._beside_the_pass(name, slot.tensor)
                if not layer.calls and number not in layer.parts:
                    layer.parts[number] = slot.index.size
                    layer.parts[None] -= slot.index.size

    def _add_readers(self) -> None:
        """Who reads a group by its slots, where no site of the traced pass shows it."""
        for number, group in enumerate(self.graph.groups):
            for slot in group.of_role(Role.CONSUMER):
                name = self.label(slot.tensor)
                if name in self._layers:
                    self._layers[name].reads.add(number)

    def _beside_the_pass(self, name: str, tensor: str) -> Layer:
        module, shape = _split(tensor)[0], self.graph.shapes[tensor]
        owner = self._modules[module]
        first, second = shape[0], shape[1] if len(shape) > 1 else 1
        if isinstance(owner, nn.modules.conv._ConvTransposeNd):
            first, second = second * owner.groups, first
        elif isinstance(owner, nn.modules.conv._ConvNd):
            second *= owner.groups
        layer = Layer(name, module, kind_of(owner), second, first, Counter({None: first}))
        self._layers[name] = layer
        return layer

    def _add_frozen(self) -> None:
        reasons: dict[str, list[str]] = {}
        for one in self.graph.frozen:
            reasons.setdefault(one.name, []).append(one.reason)
        known = {x.module for x in self._layers.values()} | self._layers.keys()
        for name in reasons.keys() - known:
            weight = name if name in self.graph.shapes else f"{name}.weight"
            if weight in self.graph.shapes:
                self._beside_the_pass(self.label(weight), weight)
        for layer in self._layers.values():
            if not layer.parts[None]:
                del layer.parts[None]
                continue
            told = reasons.get(layer.module) or reasons.get(layer.name) or [TIED]
            single = ["a single channel"] if layer.outputs == 1 and told == [TIED] else told
            layer.reasons = list(dict.fromkeys(single))

    def _in_order(self) -> list[Layer]:
        ordered = [layer for layer in self._layers.values() if layer.calls]
        for layer in self._layers.values():
            if layer.calls:
                continue
            before = [n for n, x in enumerate(ordered) if layer.reads & set(x.groups)]
            ordered.insert(max(before) + 1 if before else len(ordered), layer)
        return ordered

    def _attach(self) -> None:
        """Find for each norm and direct parameter the layer that it goes with."""
        groups_of: dict[str, set[int]] = {}
        place: dict[str, int] = {}
        for number, tensor in enumerate(self.graph.shapes):
            place.setdefault(self.label(tensor), number)
        for number, group in enumerate(self.graph.groups):
            for slot in group.slots:
                name = self.label(slot.tensor)
                aside = slot.role not in (Role.CONSUMER, Role.PRODUCER)
                if aside and name not in self._layers:
                    groups_of.setdefault(name, set()).add(number)
        for name, groups in sorted(groups_of.items(), key=lambda item: place[item[0]]):
            host = self._around(name, groups) or _host(place, place[name], groups, self.layers)
            if host is not None:
                host.beside.append(name)

    def _around(self, name: str, groups: set[int]) -> Layer | None:
        """For a parameter of a block, such as a layer scale: the last layer in the block."""
        block = name.rpartition(".")[0]
        if name in self._modules or not block:
            return None
        inside = (x for x in self._layers.values() if x.name.startswith(f"{block}."))
        return next((x for x in reversed([*inside]) if groups == set(x.groups)), None)


class _Owners:
    """Which parameter or buffer each node belongs to, as the trace numbered them."""

    def __init__(self, model: nn.Module) -> None:
        tracer = Tracer()
        register_all(tracer, model)
        owners = tracer.nodes.owners
        self._places = [(owner.name, owner.dim) for owner in owners]
        self._starts = np.array([owner.start for owner in owners], dtype=np.int64)

    def tensors(self, ids: NodeIds) -> list[str]:
        """Names of the tensors that own these nodes, in the order of the model."""
        numbers = np.unique(np.searchsorted(self._starts, ids, side="right") - 1)
        return list(dict.fromkeys(self._places[n][0] for n in numbers.tolist()))

    def place(self, ids: NodeIds | None) -> tuple[str, int] | None:
        """Tensor and dimension of the first of these nodes."""
        live = ids[ids != FIXED] if ids is not None else np.zeros(0, np.int64)
        if not len(live):
            return None
        return self._places[int(np.searchsorted(self._starts, live[:1], side="right")[0]) - 1]

    def weight_of(self, site: Site) -> str | None:
        """A tensor that a computed weight is made from."""
        places = [self.place(ids) for ids, _ in site.factors]
        return next((place[0] for place in places if place), None)


def _split(tensor: str) -> tuple[str, str]:
    """Name of the owning module, and of the tensor in it; parametrizations are looked through."""
    module, inner, rest = tensor.partition(".parametrizations.")
    if not inner and tensor.startswith("parametrizations."):
        module, rest, inner = "", tensor.removeprefix("parametrizations."), "."
    if inner:
        return module, rest.partition(".")[0]
    module, _, leaf = tensor.rpartition(".")
    return module, leaf


def kind_of(module: nn.Module) -> str:
    """'3×3 /2', 'depthwise 5×5', 'linear', or the class."""
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = "×".join(map(str, module.kernel_size))
        stride = max(module.stride)
        up = "transposed " if module.transposed else ""
        depthwise = 1 < module.groups == module.in_channels == module.out_channels
        groups = f" groups={module.groups}" if module.groups > 1 and not depthwise else ""
        step = f" /{stride}" if stride > 1 else ""
        return f"{up}{'depthwise ' if depthwise else ''}{kernel}{step}{groups}"
    if isinstance(module, nn.Linear):
        return "linear"
    return type(module).__name__


def _host(
    place: Mapping[str, int], at: int, groups: set[int], layers: Sequence[Layer]
) -> Layer | None:
    """The layer before it that produces just these groups, or the one behind it that reads them."""
    before = [x for x in layers if place.get(x.name, at) < at and groups == set(x.groups)]
    if before:
        return max(before, key=lambda x: place[x.name])
    behind = [x for x in layers if place.get(x.name, at) > at and groups <= x.reads]
    if behind:
        return min(behind, key=lambda x: place[x.name])
    return next((x for x in layers if groups & set(x.groups)), None)
