"""A whole network's time from its layers' times, for any widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune2deploy.latency.layer_names import read_graph
from prune2deploy.latency.layers import times_of_nodes
from prune2deploy.latency.staircase.flow import Flow, Length
from prune2deploy.latency.staircase.grid import half_of
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Table
from prune2deploy.latency.staircase.tiny import Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prune2deploy.latency.staircase.flow import Form

    Counts = NDArray[np.int64]

_LEAST = 0.25  # share of a node's time that is its own, whatever the profiler adds
_HALVINGS = 50


@dataclass(frozen=True)
class NetworkLayer:
    """One node of the file.

    spec: None for a node without weights, whose time goes with its width. inside, outside: its
    widths as linear forms, shape (1 + groups,). context_us: its time in the original network, with
    what was fused into it. layout: the change of layout in front of it where its input is narrower
    than a step; None: its input is not in a layout of the runtime's own.
    """

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


@dataclass(frozen=True)
class Network:
    """What is needed to say how long a network of other widths would take.

    rest_us: what the original took outside its nodes, and in what the runtime added for no tensor
    of the file. profiler_us: what the profiler adds to every node, and no run without it has.
    """

    layers: tuple[NetworkLayer, ...]
    full: Counts
    rest_us: float
    profiler_us: float = 0.0

    def specs(self) -> dict[LayerSpec, Point]:
        """Every kind of layer with its largest widths, for the table."""
        found: dict[LayerSpec, Point] = {}
        for layer in self.layers:
            inside, outside = layer.point(self.full)
            for spec, point in ((layer.spec, (inside, outside)), (layer.layout, (inside, inside))):
                if spec is not None:
                    known = found.get(spec, (0, 0))
                    found[spec] = max(point[0], known[0]), max(point[1], known[1])
        return found


class Predictor:
    """Times of a network by kept counts, from a table.

    What a layer takes in the network, fused with its neighbours and with its weights out of the
    cache, is not what it takes alone: each layer's times are scaled so that the original's widths
    give the original's time. What the profiler adds to a node is taken off its times, in the
    network and in the table. `factor` scales the whole; it is corrected by what is measured.
    """

    def __init__(self, network: Network, table: Table, factor: float = 1.0) -> None:
        self.network = network
        self.factor = factor
        self.table = table
        self._known: dict[tuple[LayerSpec, Point], tuple[float, bool]] = {}
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
            self._known[key] = own_us(found.us, self.network.profiler_us), found.interpolated
        return self._known[key]

    def layer_us(self, number: int, kept: Counts) -> float:
        """One layer's time in µs, before `factor`."""
        layer = self.network.layers[number]
        if layer.spec is not None:
            point = layer.point(kept)
            alone = self._time(layer.spec, point)[0]
            return self._scale[number] * alone + self._moved(layer, point[0])
        full = max(_width(layer.outside, self.network.full), 1)
        return layer.context_us * _width(layer.outside, kept) / full

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


def read_network(path: Path, answer: Mapping[str, Any], length: Length, full: Counts) -> Network:
    """Join a file, its profile on the device, and the channels that may go.

    Args:
        path: ONNX file of the whole network. answer: the probe's, of the ask "layers", for it.
        length: see `Length`. full: channels of each group.
    """
    import onnx

    graph = read_graph(path)
    facts = answer["models"][0]
    times, added = times_of_nodes(graph, facts["nodes"])
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    flow = Flow(proto, length, len(full))
    plain = facts["plain_run_us"]["median"]
    profiler = profiler_us([node["median"] for node in facts["nodes"]], plain)
    layers = []
    given: dict[int, NetworkLayer] = {}
    for place, (node, known) in enumerate(zip(nodes, graph.nodes, strict=True)):
        one = flow.through(node, known.layer)
        us = own_us(times.get(place, 0.0), profiler)
        given[place] = NetworkLayer(
            known.layer, node.op_type, one.spec, one.inside, one.outside, us, one.layout
        )
        if place in times:
            layers.append(given[place])
    shapes = {place: flow.shape(node.output[0]) for place, node in enumerate(nodes)}
    executed = [{**node, "median": own_us(node["median"], profiler)} for node in facts["nodes"]]
    moves, fixed = _added(executed, [graph.origin(n) for n in executed], shapes, given)
    inner = sum(times.values()) + added
    # Medians of nodes need not add up to the median of a run without the profiler, and on a busy
    # machine that run is longer than all its parts.
    rest = min(max(0.0, plain - inner), facts["outside_nodes_us"]["median"])
    return Network((*layers, *moves), full, rest + fixed, profiler)


def own_us(us: float, profiler: float) -> float:
    """A node's time without what the profiler adds."""
    return max(us - profiler, us * _LEAST)


def profiler_us(times: Sequence[float], plain: float) -> float:
    """What the profiler adds to each node, so that what is left is no more than a plain run takes.

    Args:
        times: of all nodes under the profiler, µs. plain: a run without it.
    """
    low, high = 0.0, max(times, default=0.0)
    if sum(times) <= plain:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(own_us(us, middle) for us in times) > plain:
            low = middle
        else:
            high = middle
    return high


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
            found.append(NetworkLayer(node["name"], node["op"], None, form, form, node["median"]))
        else:
            fixed += node["median"]
    return found, fixed
