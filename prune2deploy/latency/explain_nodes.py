"""What each layer of a file computes and how long it takes: MACs beside time, by the same key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy.latency.layer_names import FileGraph, Key, channels_of, graph_of
from prune2deploy.latency.staircase.grid import half_of

Shape = tuple[int, ...]
_US_PER_MS = 1e3


@dataclass(frozen=True)
class Widths:
    """Channels of a convolution; depthwise ones have as many in as out, and count once."""

    inside: int
    outside: int
    depthwise: bool

    def useful(self, step: int) -> float:
        """Return the share of the work that is left if widths are rounded up to a step."""
        out = self.outside / _up(self.outside, step)
        if self.depthwise:
            return out
        return out * self.inside / worth_having(self.inside, step, halved=True)[1]


@dataclass(frozen=True)
class Executed:
    """A layer that the runtime ran by itself, with what was fused into it.

    time_ms: median under the profiler. macs: 0 where it has none. run_channels: those of the
    output that the runtime computed, which may pad them.
    """

    name: str
    operator: str
    time_ms: float
    macs: int
    widths: Widths | None
    run_channels: int | None


@dataclass(frozen=True)
class FileTimes:
    """A file on the device: layers in order of execution, times in ms.

    keys: of all nodes in the file, also those that were fused into others. unknown: layers with
    MACs whose shapes the file does not tell. added_ms: what the runtime put in, by operator.
    """

    layers: Mapping[Key, Executed]
    keys: frozenset[Key]
    macs: int
    unknown: tuple[str, ...]
    added_ms: Mapping[str, float]


@dataclass(frozen=True)
class FileCost:
    """What a layer of a file costs, whatever runs it. macs: None where the file does not tell."""

    name: str
    operator: str
    macs: int | None
    params: int


def read_costs(path: Path) -> dict[Key, FileCost]:
    """Return the layers of an ONNX file that have weights or MACs, in the file's order.

    Raises:
        google.protobuf.message.DecodeError: it is no ONNX file.
    """
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    shapes = _shapes(proto)
    weights = {one.name: math.prod(one.dims) for one in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    found = {}
    for node, known in zip(nodes, graph_of(proto).nodes, strict=True):
        macs = _macs(node, shapes)
        if macs == 0:
            continue
        params = sum(weights.get(name, 0) for name in node.input[1:])
        found[known.key] = FileCost(known.layer, node.op_type, macs, params)
    return found


def read_times(path: Path, executed: Sequence[Mapping[str, Any]]) -> FileTimes:
    """Join an ONNX file and its profile. executed: nodes of the probe's answer for this file."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = graph_of(proto)
    shapes = _shapes(proto)
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    macs = [_macs(node, shapes) for node in nodes]
    origins = [graph.origin(node) for node in executed]
    fused = graph.absorbed(origins)
    times: dict[int, float] = {}
    padded: dict[int, int | None] = {}
    added: dict[str, float] = {}
    for node, place in zip(executed, origins, strict=True):
        ms = node["median"] / _US_PER_MS
        if place is None:
            added[node["op"]] = added.get(node["op"], 0.0) + ms
            continue
        times[place] = times.get(place, 0.0) + ms
        given = node["output_shapes"]
        padded[place] = channels_of(given[0]["shape"], graph.nodes[place].axis) if given else None
    layers = {
        graph.nodes[place].key: Executed(
            name=graph.nodes[place].layer,
            operator="+".join([graph.nodes[place].op, *fused.get(place, [])]),
            time_ms=ms,
            macs=macs[place] or 0,
            widths=_widths(nodes[place], shapes),
            run_channels=padded[place],
        )
        for place, ms in times.items()
    }
    return FileTimes(
        layers=layers,
        keys=frozenset(node.key for node in graph.nodes),
        macs=sum(one or 0 for one in macs),
        unknown=_unknown(graph, macs),
        added_ms=added,
    )


def _unknown(graph: FileGraph, macs: Sequence[int | None]) -> tuple[str, ...]:
    return tuple(n.layer for n, one in zip(graph.nodes, macs, strict=True) if one is None)


def _shapes(proto: Any) -> dict[str, Shape]:
    """Return the shapes of all tensors; an open batch counts as 1, another open size stays 0."""
    found: dict[str, Shape] = {}
    graph = proto.graph
    for one in (*graph.input, *graph.value_info, *graph.output):
        if one.type.tensor_type.HasField("shape"):
            dims = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
            found[one.name] = (*(dims[:1] and [dims[0] or 1]), *dims[1:])
    return {**found, **{one.name: tuple(one.dims) for one in graph.initializer}}


def _macs(node: Any, shapes: Mapping[str, Shape]) -> int | None:
    """Return the multiply-accumulates of a node; None where shapes do not tell."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    image, weight = (shapes.get(name, ()) for name in node.input[:2])
    output = shapes.get(node.output[0], ())
    if not (image and weight and output) or 0 in (*image, *weight, *output):
        return None
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(image) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        return math.prod(weight) * output[0]
    return math.prod(output) * image[-1]


def _widths(node: Any, shapes: Mapping[str, Shape]) -> Widths | None:
    weight = shapes.get(node.input[1], ()) if node.op_type == "Conv" else ()
    if not weight or 0 in weight:
        return None
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return Widths(weight[1] * groups, weight[0], depthwise=groups > 1)


def padding_step(models: Sequence[FileTimes]) -> int | None:
    """Return the block to which the runtime pads channels, as its own shapes tell; else None."""
    pairs = {
        (one.widths.outside, one.run_channels)
        for model in models
        for one in model.layers.values()
        if one.widths is not None and one.run_channels is not None
    }
    if all(own == computed for own, computed in pairs):
        return None
    for step in (4, 8, 16, 32, 64):
        # A layer that the runtime does not pad says nothing of those that it does.
        if all(computed in (own, _up(own, step)) for own, computed in pairs):
            return step
    return None


def worth_having(width: int, step: int, halved: bool) -> tuple[int, int]:
    """Return the widths below and above (or equal) that waste nothing; 0 where none is below.

    halved: it is an input. Of no more than half a step, inputs are read in another way, without
    the other half (design.md, 5).
    """
    half = half_of(step) if halved else None
    if half is not None and width <= half:
        return 0, half
    down = (width - 1) // step * step
    return down or half or 0, _up(width, step)


def _up(width: int, step: int) -> int:
    return math.ceil(width / step) * step
