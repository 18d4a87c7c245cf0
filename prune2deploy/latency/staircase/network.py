"""A whole network's time from its layers' times, for any widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune2deploy.latency.layer_names import Key, read_graph
from prune2deploy.latency.layers import times_of_nodes
from prune2deploy.latency.staircase.flow import Flow, Length
from prune2deploy.latency.staircase.grid import Extent, half_of
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Profiler, Table
from prune2deploy.latency.staircase.tiny import Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prune2deploy.latency.staircase.flow import Form

    Counts = NDArray[np.int64]

_FARTHEST = 4.0  # times longer or shorter than its table says that a layer is taken to be


@dataclass(frozen=True)
class NetworkLayer:
    """One node of the file.

    key: the same in the file of a pruned network; None: the runtime put the node in. spec: None
    for a node without weights, whose time goes with its width. inside, outside: its widths as
    linear forms, shape (1 + groups,). context_us: its time in the original network, with what was
    fused into it. layout: the change of layout in front of it where its input is narrower than a
    step; None: its input is not in a layout of the runtime's own.
    """

    key: Key | None
    name: str
    operator: str
    spec: LayerSpec | None
    inside: Form
    outside: Form
    context_us: float
    layout: LayerSpec | None = None

    def point(self, kept: Counts) -> Point:
        """Its widths in and out for these counts."""
        return _width(self.inside, kept), _width(self.outside, kept)

    @property
    def may_shrink(self) -> tuple[bool, bool]:
        """Whether its widths in and out depend on any group."""
        return bool(self.inside[1:].any()), bool(self.outside[1:].any())


@dataclass(frozen=True)
class Network:
    """What is needed to say how long a network of other widths would take.

    rest_us: what the original took outside its nodes, and in what the runtime added for no tensor
    of the file.
    """

    layers: tuple[NetworkLayer, ...]
    full: Counts
    rest_us: float

    def specs(self) -> dict[LayerSpec, list[Extent]]:
        """Every kind of layer with its largest widths, for the table."""
        found: dict[LayerSpec, dict[tuple[int | None, int | None], Extent]] = {}
        for layer in self.layers:
            point, may = layer.point(self.full), layer.may_shrink
            for spec, full, free in (
                (layer.spec, point, may),
                (layer.layout, (point[0], point[0]), (may[0], may[0])),
            ):
                if spec is not None:
                    # What cannot shrink differs from layer to layer; the rest has one grid.
                    fixed = (None if free[0] else full[0], None if free[1] else full[1])
                    of_spec = found.setdefault(spec, {})
                    known = of_spec.get(fixed, Extent((0, 0))).full
                    larger = max(full[0], known[0]), max(full[1], known[1])
                    of_spec[fixed] = Extent(larger, free)
        return {spec: list(extents.values()) for spec, extents in found.items()}


class Predictor:
    """Times of a network by kept counts, from a table.

    What a layer takes in the network, fused with its neighbours and with its weights out of the
    cache, is not what it takes alone: each layer's times are scaled so that the original's widths
    give the original's time. What the profiler adds to a node is taken off its times, in the
    network and in the table. `factor` scales the whole; it is corrected by what is measured, and
    so is every layer (`see`): one that filled the cache in the original need not any more.
    """

    def __init__(self, network: Network, table: Table, factor: float = 1.0) -> None:
        self.network = network
        self.factor = factor
        self.table = table
        self.profiler = table.profiler or Profiler()
        self._known: dict[tuple[LayerSpec, Point], tuple[float, bool]] = {}
        # Per layer what its time was multiplied with, by the time that the table says.
        self._seen: list[dict[float, float]] = [{} for _ in network.layers]
        self._layers: dict[tuple[int, Point], float] = {}
        self._scale = [
            1.0
            if layer.spec is None
            else layer.context_us / self._time(layer.spec, layer.point(network.full))[0]
            for layer in network.layers
        ]

    def _time(self, spec: LayerSpec, point: Point) -> tuple[float, bool]:
        key = spec, point
        if key not in self._known:
            found = self.table.time(spec, point)
            self._known[key] = self.profiler.own_us(found.us), found.interpolated
        return self._known[key]

    def see(self, kept: Counts, times: Mapping[Key, float]) -> None:
        """Correct every layer by what it took in a network that keeps these channels.

        Between networks that were seen, the original is one of them, corrections go over into one
        another. times: µs by the layers' keys, without what the profiler adds.
        """
        for number, layer in enumerate(self.network.layers):
            us = None if layer.key is None else times.get(layer.key)
            if us:
                said = self._uncorrected_us(number, layer.point(kept))
                ratio = us / said if said > 0 else 1.0
                self._seen[number][said] = min(max(ratio, 1 / _FARTHEST), _FARTHEST)
        self._layers.clear()

    def layer_us(self, number: int, kept: Counts) -> float:
        """One layer's time in µs, before `factor`."""
        point = self.network.layers[number].point(kept)
        key = number, point
        if key not in self._layers:
            us = self._uncorrected_us(number, point)
            self._layers[key] = us * self._correction(number, us)
        return self._layers[key]

    def _correction(self, number: int, us: float) -> float:
        """What a time is to be multiplied with."""
        seen = self._seen[number]
        if not seen:
            return 1.0
        full = self.network.layers[number].context_us
        points = sorted({full: 1.0, **seen}.items())
        low = max((one for one in points if one[0] <= us), default=points[0])
        high = min((one for one in points if one[0] >= us), default=points[-1])
        if low[0] >= high[0]:
            return high[1]
        share = math.log(us / low[0]) / math.log(high[0] / low[0])
        return float(low[1] * (high[1] / low[1]) ** share)

    def _uncorrected_us(self, number: int, point: Point) -> float:
        layer = self.network.layers[number]
        if layer.spec is not None:
            alone = self._time(layer.spec, point)[0]
            return self._scale[number] * alone + self._moved(layer, point[0])
        full = max(_width(layer.outside, self.network.full), 1)
        return layer.context_us * point[1] / full

    def _moved(self, layer: NetworkLayer, inside: int) -> float:
        """What goes before a layer that does not read what the layer before it writes."""
        half = half_of(self.table.step or 1)
        if layer.layout is None or half is None or inside > half:
            return 0.0
        return self._time(layer.layout, (half, half))[0] * inside / half

    def total_us(self, kept: Counts) -> float:
        """The network's time in µs."""
        layers = sum(self.layer_us(number, kept) for number in range(len(self.network.layers)))
        return self.factor * (layers + self.network.rest_us)

    def interpolated(self, kept: Counts) -> int:
        """How many layers' times are between measured widths."""
        return sum(
            self._time(layer.spec, layer.point(kept))[1]
            for layer in self.network.layers
            if layer.spec is not None
        )


def _width(form: Form, kept: Counts) -> int:
    return max(1, round(float(form[0] + form[1:] @ kept)))


def read_network(
    path: Path, answer: Mapping[str, Any], length: Length, full: Counts, profiler: Profiler
) -> Network:
    """Join a file, its profile on the device, and the channels that may go.

    Args:
        path: ONNX file of the whole network. answer: the probe's, of the ask "layers", for it.
        length: see `Length`. full: channels of each group. profiler: what it adds.
    """
    import onnx

    graph = read_graph(path)
    facts = answer["models"][0]
    times = times_of_nodes(graph, facts["nodes"])
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    flow = Flow(proto, length, len(full))
    plain = facts["plain_run_us"]["median"]
    layers = []
    given: dict[int, NetworkLayer] = {}
    for place, (node, known) in enumerate(zip(nodes, graph.nodes, strict=True)):
        one = flow.through(node, known.layer)
        us = profiler.own_us(times.get(place, 0.0))
        given[place] = NetworkLayer(
            known.key, known.layer, node.op_type, one.spec, one.inside, one.outside, us, one.layout
        )
        if place in times:
            layers.append(given[place])
    shapes = {place: flow.shape(node.output[0]) for place, node in enumerate(nodes)}
    executed = [{**node, "median": profiler.own_us(node["median"])} for node in facts["nodes"]]
    moves, fixed = _added(executed, [graph.origin(n) for n in executed], shapes, given)
    # Medians of nodes need not add up to the median of a run without the profiler, and on a busy
    # machine that run is longer than all its parts. So no more than the profiler saw beside them.
    inner = sum(one["median"] for one in executed)
    beside = facts["outside_nodes_us"]["median"] - profiler.beside_us * len(executed)
    rest = max(0.0, min(plain - inner, beside))
    return Network((*layers, *moves), full, rest + fixed)


def own_times(path: Path, answer: Mapping[str, Any], profiler: Profiler) -> dict[Key, float]:
    """What each layer of a file took, in µs by its key, without what the profiler adds."""
    graph = read_graph(path)
    times = times_of_nodes(graph, answer["models"][0]["nodes"])
    return {graph.nodes[place].key: profiler.own_us(us) for place, us in times.items()}


def _added(
    executed: Sequence[Mapping[str, Any]],
    places: Sequence[int | None],
    shapes: Mapping[int, tuple[int, ...]],
    given: Mapping[int, NetworkLayer],
) -> tuple[list[NetworkLayer], float]:
    """What the runtime put in, such as a change of layout, follows the tensor that it moves.

    Returns:
        Those whose tensor is known, by its shape, from the node before or behind; and the µs of
        the others.
    """
    found, fixed = [], 0.0
    for turn, (node, place) in enumerate(zip(executed, places, strict=True)):
        if place is not None:
            continue
        outputs = node["output_shapes"] or [{"shape": None}]
        before = next((one for one in reversed(places[:turn]) if one is not None), None)
        behind = next((one for one in places[turn + 1 :] if one is not None), None)
        same = [
            one
            for one in (before, behind)
            if one is not None and list(shapes[one]) == outputs[0]["shape"]
        ]
        if same:
            form = given[same[0]].outside
            us = node["median"]
            found.append(NetworkLayer(None, node["name"], node["op"], None, form, form, us))
        else:
            fixed += node["median"]
    return found, fixed
