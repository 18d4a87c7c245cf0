"""A whole network's time from its layers' times, for any widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune2deploy.latency.layer_names import read_graph
from prune2deploy.latency.layers import times_of_nodes
from prune2deploy.latency.staircase.specs import LayerSpec, spec_of
from prune2deploy.latency.staircase.table import Table
from prune2deploy.latency.staircase.tiny import Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Form = NDArray[np.float64]
    Counts = NDArray[np.int64]

Length = Callable[[str, int], "Form | None"]
"""(parameter, dimension) -> its length as a linear form of the kept channels of each group."""

_WEIGHTY = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class NetworkLayer:
    """One node of the file.

    spec: None for a node without weights, whose time goes with its width. inside, outside: its
    widths as linear forms, shape (1 + groups,). context_us: its time in the original network, with
    what was fused into it.
    """

    name: str
    operator: str
    spec: LayerSpec | None
    inside: Form
    outside: Form
    context_us: float

    def point(self, kept: Counts) -> Point:
        """Its widths in and out for these counts."""
        return _width(self.inside, kept), _width(self.outside, kept)


@dataclass(frozen=True)
class Network:
    """What is needed to say how long a network of other widths would take.

    rest_us: what the original took outside its nodes, and in what the runtime added for no tensor
    of the file.
    """

    layers: tuple[NetworkLayer, ...]
    full: Counts
    rest_us: float

    def specs(self) -> dict[LayerSpec, Point]:
        """Every kind of layer with its largest widths, for the table."""
        found: dict[LayerSpec, Point] = {}
        for layer in self.layers:
            if layer.spec is not None:
                inside, outside = layer.point(self.full)
                known = found.get(layer.spec, (0, 0))
                found[layer.spec] = max(inside, known[0]), max(outside, known[1])
        return found


class Predictor:
    """Times of a network by kept counts, from a table.

    What a layer takes in the network, fused with its neighbours and with its weights out of the
    cache, is not what it takes alone: each layer's times are scaled so that the original's widths
    give the original's time. `factor` scales the whole; it is corrected by what is measured.
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
            self._known[key] = found.us, found.interpolated
        return self._known[key]

    def layer_us(self, number: int, kept: Counts) -> float:
        """One layer's time in µs, before `factor`."""
        layer = self.network.layers[number]
        if layer.spec is not None:
            return self._scale[number] * self._time(layer.spec, layer.point(kept))[0]
        full = max(_width(layer.outside, self.network.full), 1)
        return layer.context_us * _width(layer.outside, kept) / full

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
    layers = []
    given: dict[int, NetworkLayer] = {}
    for place, (node, known) in enumerate(zip(nodes, graph.nodes, strict=True)):
        inside, outside, spec = flow.through(node, known.layer)
        given[place] = NetworkLayer(
            known.layer, node.op_type, spec, inside, outside, times.get(place, 0.0)
        )
        if place in times:
            layers.append(given[place])
    shapes = {place: flow.shape(node.output[0]) for place, node in enumerate(nodes)}
    moves, fixed = _added(facts["nodes"], [graph.origin(n) for n in facts["nodes"]], shapes, given)
    inner = sum(times.values()) + added
    # Medians of nodes need not add up to the median of a run without the profiler, and on a busy
    # machine that run is longer than all its parts.
    outside_us = facts["outside_nodes_us"]["median"]
    rest = min(max(0.0, facts["plain_run_us"]["median"] - inner), outside_us)
    return Network((*layers, *moves), full, rest + fixed)


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


class Flow:
    """Follows the widths of tensors through a file, as forms of the kept channels."""

    def __init__(self, proto: Any, length: Length, groups: int) -> None:
        self._length = length
        self._groups = groups
        self._constants = {one.name: tuple(one.dims) for one in proto.graph.initializer}
        self._shapes: dict[str, tuple[int, ...]] = dict(self._constants)
        infos = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        for one in infos:
            dims = one.type.tensor_type.shape.dim
            self._shapes[one.name] = tuple(dim.dim_value for dim in dims)
        self._forms: dict[str, Form] = {}

    def through(self, node: Any, layer: str) -> tuple[Form, Form, LayerSpec | None]:
        """Widths in and out of a node, and what layer it is."""
        data = [name for name in node.input if name and name not in self._constants]
        source = data[0] if data else ""
        inside = self._form(source)
        spec = None
        if node.op_type in _WEIGHTY and len(data) == 1:
            outside, spec = self._weighty(node, source, layer)
            if spec is not None and spec.kind == "depthwise":
                inside = outside
        else:
            outside = self._plain(node, data)
        for name in node.output:
            if name:
                self._forms[name] = outside
        return inside, outside, spec

    def _weighty(self, node: Any, source: str, layer: str) -> tuple[Form, LayerSpec | None]:
        weight = node.input[1] if node.input[0] == source else node.input[0]
        shape = self._shapes.get(weight, ())
        image = self._shapes.get(source, ())
        whole = self._channels(node.output[0])
        # torch has the outputs of a layer first; a file may have a linear layer's the other way.
        found = self._length(f"{layer}.weight", 0)
        outside = self._fixed(whole) if found is None else found
        known = bool(shape) and bool(image) and 0 not in image
        return outside, spec_of(node, image, shape, "float32") if known else None

    def _plain(self, node: Any, data: Sequence[str]) -> Form:
        whole = self._channels(node.output[0])
        if node.op_type == "Concat" and data:
            parts = [self._form(name) for name in data]
            if sum(self._channels(name) for name in data) == whole:
                total: Form = sum(parts[1:], parts[0])
                return total
        for name in data:
            if self._channels(name) == whole:
                return self._form(name)
        for name in data:  # flattened, or a part of it: in proportion
            if self._channels(name):
                scaled: Form = self._form(name) * (whole / self._channels(name))
                return scaled
        return self._fixed(whole)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; () where it is not known."""
        return self._shapes.get(name, ())

    def area(self, name: str) -> float:
        """Numbers of a tensor for each of its channels."""
        shape = self._shapes.get(name, ())
        return math.prod(shape) / max(self._channels(name), 1)

    def _channels(self, name: str) -> int:
        shape = self._shapes.get(name, ())
        if len(shape) < 2:
            return 1
        return shape[-1] if len(shape) == 3 else shape[1]

    def _form(self, name: str) -> Form:
        return self._forms[name] if name in self._forms else self._fixed(self._channels(name))

    def _fixed(self, width: int) -> Form:
        import numpy as np

        form = np.zeros(1 + self._groups)
        form[0] = width
        return form
