"""A whole network's time: the widths that a cut gives are the widths that are predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import Net, conv, counts, random_kept
from torch import nn
from torch.nn import functional

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.export import export_model_file
from prune2deploy.latency.layer_names import read_graph
from prune2deploy.latency.staircase.grid import Extent
from prune2deploy.latency.staircase.network import (
    Network,
    Predictor,
    own_times,
    read_network,
)
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Estimate, Profiler, Table
from prune2deploy.latency.staircase.tiny import Point
from prune2deploy.models.cifar_densenet import CifarDenseNet
from prune2deploy.models.cifar_resnet import resnet20
from prune2deploy.models.convnet import convnet

OUTSIDE = 1000.0  # µs that a run takes beside its layers


def macs(spec: LayerSpec, point: Point) -> float:
    """Multiply-accumulates of a layer; of a grouped one by its own rule."""
    inside, outside = point
    if spec.kind == "linear":
        return float(spec.rows * inside * outside)
    positions = 1.0
    for n, size in enumerate(spec.size):
        reach = spec.dilations[n] * (spec.kernel[n] - 1) + 1
        padded = size + spec.pads[n] + spec.pads[n + len(spec.size)]
        positions *= (padded - reach) // spec.strides[n] + 1
    read = {"depthwise": 1, "grouped": spec.group_width}.get(spec.kind, inside)
    return float(spec.rows * positions * np.prod(spec.kernel) * read * outside)


class ByMacs(Table):
    """Times that are the multiply-accumulates: what a network takes can be counted."""

    def time(self, spec: LayerSpec, point: Point) -> Estimate:
        return Estimate(macs(spec, point), False)


def weights_of(path: Path) -> dict[str, Point]:
    """Widths in and out of every layer of a file, by the layer's name, from its weights."""
    proto = onnx.load(path)
    dims = {one.name: list(one.dims) for one in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    found: dict[str, Point] = {}
    for node, known in zip(nodes, read_graph(path).nodes, strict=True):
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in dims:
            continue
        shape = dims[node.input[1]]
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Conv":
            found[known.layer] = shape[1] * given.get("group", 1), shape[0]
        else:
            turned = node.op_type == "Gemm" and given.get("transB", 0)
            found[known.layer] = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    return found


def answer_for(path: Path) -> dict[str, Any]:
    """A profile in which layers take their multiply-accumulates and the rest is fused away."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {one.name: list(one.dims) for one in proto.graph.initializer}
    nodes = []
    for index, node in enumerate(n for n in proto.graph.node if n.op_type != "Constant"):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, out = shapes[node.input[1]], shapes[node.output[0]]
        if node.op_type == "Conv":
            amount = np.prod(weight[1:]) * np.prod(out)
        else:
            amount = np.prod(shapes[node.input[0]]) * out[-1]
        nodes.append({"name": node.name, "op": node.op_type, "index": index, "inputs": None})
        nodes[-1] |= {"outputs": None, "median": float(amount), "output_shapes": None}
    whole = sum(node["median"] for node in nodes) + OUTSIDE
    facts = {"plain_run_us": {"median": whole}, "outside_nodes_us": {"median": OUTSIDE}}
    return {"models": [{"nodes": nodes, **facts}]}


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(20),
        nn.Hardswish(),
        nn.Flatten(),  # of an image: each channel is 16 numbers
        nn.Linear(320, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


def separable() -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6()]
    for inside, outside in ((8, 12), (12, 16)):
        parts += [
            nn.Conv2d(inside, inside, 3, padding=1, groups=inside),
            nn.ReLU6(),
            nn.Conv2d(inside, outside, 1),
        ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def grouped() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        conv(16, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def excited() -> nn.Module:
    def forward(net: Any, x: Any) -> Any:
        x = functional.relu(net.a(x))
        gate = torch.sigmoid(net.up(functional.relu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.head((net.b(x * gate)).mean((2, 3)))

    parts = {"a": conv(3, 16, 3), "down": conv(16, 4), "up": conv(4, 16), "b": conv(16, 12)}
    return Net(forward, **parts, head=nn.Linear(12, 5))


def joined() -> nn.Module:
    """Two branches side by side, into a flattened image."""

    def forward(net: Any, x: Any) -> Any:
        x = torch.cat([functional.relu(net.a(x)), functional.max_pool2d(net.b(x), 3, 1, 1)], 1)
        return net.head(functional.avg_pool2d(net.c(x), 8).flatten(1))

    parts = {"a": conv(3, 6), "b": conv(3, 10), "c": conv(16, 8, 3, padding=1)}
    return Net(forward, **parts, head=nn.Linear(32, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convnet": (convnet, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
    "densenet": (lambda: CifarDenseNet(2, 4), (3, 32, 32)),
    "plain": (plain, (3, 16, 16)),
    "separable": (separable, (3, 16, 16)),
    "grouped": (grouped, (3, 16, 16)),
    "excited": (excited, (3, 16, 16)),
    "joined": (joined, (3, 16, 16)),
}


@cache
def traced(name: str) -> Graph:
    torch.manual_seed(0)
    made, shape = NETWORKS[name]
    return trace(made().eval(), torch.randn(1, *shape))


def exported(model: nn.Module, name: str, path: Path) -> Path:
    export_model_file(model, path, input_shape=NETWORKS[name][1])
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Graph, Network]]:
    folder = tmp_path_factory.mktemp("networks")

    @cache
    def read(name: str) -> tuple[Graph, Network]:
        graph = traced(name)
        path = exported(graph.model, name, folder / f"{name}.onnx")
        return graph, read_network(
            path, answer_for(path), graph.cost.length, graph.full, Profiler()
        )

    return read


Networks = Callable[[str], tuple[Graph, Network]]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_full_widths_take_what_the_original_took(networks: Networks, name: str) -> None:
    graph, network = networks(name)
    assert network.rest_us == pytest.approx(OUTSIDE)
    layers = [layer for layer in network.layers if layer.operator in ("Conv", "Gemm", "MatMul")]
    assert all(layer.spec is not None for layer in layers)
    for layer in layers:
        assert layer.spec is not None
        assert layer.context_us == macs(layer.spec, layer.point(graph.full))
    predictor = Predictor(network, ByMacs(Path("none"), {}))
    whole = sum(layer.context_us for layer in layers) + OUTSIDE
    assert predictor.total_us(graph.full) == pytest.approx(whole)
    predictor.factor = 1.5
    assert predictor.total_us(graph.full) == pytest.approx(1.5 * whole)
    assert predictor.interpolated(graph.full) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_has_the_widths_that_were_predicted(
    networks: Networks, name: str, tmp_path: Path
) -> None:
    graph, network = networks(name)
    predictor = Predictor(network, ByMacs(Path("none"), {}))
    for seed in range(1 if name in ("resnet20", "densenet") else 2):
        kept = random_kept(graph.groups, seed)
        small = exported(cut(graph.model, graph.plan(kept)), name, tmp_path / f"{seed}.onnx")
        real = weights_of(small)
        number = counts(kept)
        found = {one.name: one.point(number) for one in network.layers if one.spec is not None}
        assert found == real
        # and so the time is what the cut file's own layers take
        nodes = answer_for(small)["models"][0]["nodes"]
        taken = sum(node["median"] for node in nodes) + OUTSIDE
        assert predictor.total_us(number) == pytest.approx(taken)


def test_equal_layers_are_one_kind_with_the_largest_widths(networks: Networks) -> None:
    graph, network = networks("resnet20")
    specs = network.specs()
    layers = [layer for layer in network.layers if layer.spec is not None]
    assert len(specs) < len(layers) / 2
    for layer in layers:
        assert layer.spec is not None
        [widest] = [one.full for one in specs[layer.spec] if one.free == layer.may_shrink]
        assert all(a <= b for a, b in zip(layer.point(graph.full), widest, strict=True))
    classifier = layers[-1]
    assert classifier.spec is not None
    assert specs[classifier.spec] == [Extent((64, 10), (True, False))]


def test_what_has_no_weights_goes_with_its_width(tmp_path: Path) -> None:
    graph = traced("joined")
    path = exported(graph.model, "joined", tmp_path / "n.onnx")
    answer = answer_for(path)
    pool = next(n for n in onnx.load(path).graph.node if n.op_type == "MaxPool")
    answer["models"][0]["nodes"].append(
        {"name": pool.name, "op": "MaxPool", "index": 99, "inputs": None, "outputs": None}
        | {"median": 500.0, "output_shapes": None}
    )
    network = read_network(path, answer, graph.cost.length, graph.full, Profiler())
    number = next(n for n, one in enumerate(network.layers) if one.operator == "MaxPool")
    predictor = Predictor(network, ByMacs(Path("none"), {}))
    kept = graph.full.copy()
    assert predictor.layer_us(number, kept) == 500
    branch = next(n for n, group in enumerate(graph.groups) if group.size == 10)
    kept[branch] = 5
    assert predictor.layer_us(number, kept) == pytest.approx(250)


def test_times_that_runs_do_not_have_are_no_rest(tmp_path: Path) -> None:
    # Under the profiler nodes may take longer than a whole run without it.
    graph = traced("joined")
    path = exported(graph.model, "joined", tmp_path / "n.onnx")
    answer = answer_for(path)
    answer["models"][0]["plain_run_us"]["median"] = 1.0
    network = read_network(path, answer, graph.cost.length, graph.full, Profiler())
    assert network.rest_us == 0


def test_what_the_runtime_added_follows_the_tensor_that_it_moves(tmp_path: Path) -> None:
    graph = traced("joined")
    path = exported(graph.model, "joined", tmp_path / "n.onnx")
    answer = answer_for(path)
    facts = answer["models"][0]
    weights = {one.name: list(one.dims) for one in onnx.load(path).graph.initializer}
    number = next(n for n, group in enumerate(graph.groups) if group.size == 10)
    turn = next(
        n
        for n, node in enumerate(onnx.load(path).graph.node)
        if node.op_type == "Conv" and weights[node.input[1]][0] == 10
    )
    name = onnx.load(path).graph.node[turn].name
    behind = 1 + next(n for n, node in enumerate(facts["nodes"]) if node["name"] == name)
    added = {"name": "ReorderOutput_token_7", "op": "ReorderOutput", "index": 99, "inputs": None}
    added |= {"outputs": None, "median": 300.0}
    moves = [{**added, "output_shapes": [{"shape": shape}]} for shape in ([1, 10, 16, 16], [1, 7])]
    facts["nodes"][behind:behind] = moves
    facts["plain_run_us"]["median"] += 600
    network = read_network(path, answer, graph.cost.length, graph.full, Profiler())
    # One moves the branch's tensor, and of the other nothing is known.
    assert network.rest_us == pytest.approx(OUTSIDE + 300)
    place = next(n for n, one in enumerate(network.layers) if one.operator == "ReorderOutput")
    kept = graph.full.copy()
    kept[number] = 5
    assert Predictor(network, ByMacs(Path("none"), {})).layer_us(place, kept) == 150


def test_a_run_that_was_held_up_makes_no_fixed_cost(tmp_path: Path) -> None:
    # On a busy machine whole runs are longer than all that is in them.
    graph = traced("joined")
    path = exported(graph.model, "joined", tmp_path / "n.onnx")
    answer = answer_for(path)
    answer["models"][0]["plain_run_us"]["median"] *= 3
    assert read_network(path, answer, graph.cost.length, graph.full, Profiler()).rest_us == OUTSIDE


PROFILER = Profiler(3.0, 2.0)


def watched(path: Path) -> dict[str, Any]:
    """A profile with what the profiler adds: every node takes longer, and so does the run."""
    answer = answer_for(path)
    facts = answer["models"][0]
    for node in facts["nodes"]:
        node["median"] += PROFILER.inside_us
    facts["outside_nodes_us"]["median"] += PROFILER.beside_us * len(facts["nodes"])
    return answer


class Profiled(ByMacs):
    """Times as the profiler sees them."""

    def __init__(self) -> None:
        super().__init__(Path("none"), {}, profiler=PROFILER)

    def time(self, spec: LayerSpec, point: Point) -> Estimate:
        return Estimate(super().time(spec, point).us + PROFILER.inside_us, False)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_profiler_adds_is_in_no_prediction(
    networks: Networks, name: str, tmp_path: Path
) -> None:
    graph, _ = networks(name)
    path = exported(graph.model, name, tmp_path / "n.onnx")
    answer = watched(path)
    network = read_network(path, answer, graph.cost.length, graph.full, PROFILER)
    assert network.rest_us == pytest.approx(OUTSIDE)
    predictor = Predictor(network, Profiled())
    whole = answer["models"][0]["plain_run_us"]["median"]
    assert predictor.total_us(graph.full) == pytest.approx(whole)
    kept = random_kept(graph.groups, 0)
    small = exported(cut(graph.model, graph.plan(kept)), name, tmp_path / "cut.onnx")
    assert predictor.total_us(counts(kept)) == pytest.approx(
        answer_for(small)["models"][0]["plain_run_us"]["median"]
    )


def test_no_more_is_taken_off_than_a_node_has() -> None:
    assert [Profiler(6.0).own_us(us) for us in (100.0, 8.0, 4.0)] == [94.0, 2.0, 1.0]


def slower(path: Path, by: dict[str, float]) -> dict[str, Any]:
    """A profile in which some layers take longer than they should, by their names."""
    answer = watched(path)
    proto = onnx.load(path)
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    names = {n.name: known.layer for n, known in zip(nodes, read_graph(path).nodes, strict=True)}
    for node in answer["models"][0]["nodes"]:
        us = PROFILER.own_us(node["median"]) * by.get(names[node["name"]], 1.0)
        node["median"] = us + PROFILER.inside_us
    return answer


def test_layers_are_corrected_by_what_they_took_in_a_pruned_network(
    networks: Networks, tmp_path: Path
) -> None:
    graph, _ = networks("plain")
    path = exported(graph.model, "plain", tmp_path / "n.onnx")
    network = read_network(path, watched(path), graph.cost.length, graph.full, PROFILER)
    first, second = network.layers[:2]
    half, quarter = graph.full // 2, graph.full // 4
    small = exported(
        cut(graph.model, graph.plan([np.arange(n) for n in half])), "plain", tmp_path / "cut.onnx"
    )
    predictor = Predictor(network, Profiled())
    before = [predictor.layer_us(n, half) for n in range(len(network.layers))]
    full = predictor.total_us(graph.full)
    seen = own_times(small, slower(small, {first.name: 0.5, second.name: 1.5}), PROFILER)
    predictor.see(half, seen)
    after = [predictor.layer_us(n, half) for n in range(len(network.layers))]
    assert after[0] == pytest.approx(before[0] * 0.5)
    assert after[1] == pytest.approx(before[1] * 1.5)
    assert after[2:] == pytest.approx(before[2:])
    # Below that it holds as a whole, and the original takes what it took.
    plain = Predictor(network, Profiled())
    assert predictor.layer_us(0, quarter) == pytest.approx(plain.layer_us(0, quarter) * 0.5)
    assert predictor.total_us(graph.full) == pytest.approx(full)
    between = predictor.layer_us(0, half + 2) / plain.layer_us(0, half + 2)
    assert 0.5 < between < 1
    # What is seen later of the same widths counts, and not both.
    predictor.see(half, own_times(small, watched(small), PROFILER))
    assert [predictor.layer_us(n, half) for n in range(len(before))] == pytest.approx(before)


def test_between_two_networks_that_were_seen_corrections_go_over(networks: Networks) -> None:
    graph, network = networks("plain")
    predictor = Predictor(network, ByMacs(Path("none"), {}))
    plain = Predictor(network, ByMacs(Path("none"), {}))
    key = network.layers[0].key
    assert key is not None
    few, some, many, kept = (graph.full.copy() for _ in range(4))
    few[0], some[0], many[0], kept[0] = 3, 6, 9, 4
    for counts_, ratio in ((many, 1.2), (few, 0.5), (some, 0.8)):
        predictor.see(counts_, {key: ratio * plain.layer_us(0, counts_)})
    ratios = dict.fromkeys(range(2, 13), 0.0)
    for n in ratios:
        kept[0] = n
        ratios[n] = predictor.layer_us(0, kept) / plain.layer_us(0, kept)
    assert [ratios[n] for n in (2, 3, 6, 9, 12)] == pytest.approx([0.5, 0.5, 0.8, 1.2, 1.0])
    assert ratios[3] < ratios[4] < ratios[5] < ratios[6] < ratios[7] < ratios[8] < ratios[9]
    assert ratios[9] > ratios[10] > ratios[11] > ratios[12]


def test_one_wild_time_does_not_make_a_layer_cheap(networks: Networks) -> None:
    graph, network = networks("plain")
    half = graph.full // 2
    predictor = Predictor(network, ByMacs(Path("none"), {}))
    before = predictor.layer_us(0, half)
    key = network.layers[0].key
    assert key is not None
    for us, most in ((before * 100, 4), (before / 100, 0.25)):
        predictor.see(half, {key: us})
        assert predictor.layer_us(0, half) == pytest.approx(before * most)
    # A profile without this layer, or without any, says nothing of it.
    predictor.see(half, {})
    assert predictor.layer_us(0, half) == pytest.approx(before * 0.25)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("plain", {"4"}),  # after a hard swish the next layer reads a plain image anyway
        ("separable", {"2", "5"}),  # what a depthwise layer writes is in the plain layout
        ("excited", {"down", "up", "b"}),  # one that is 1x1 is an image, too
        ("joined", {"c"}),
        ("grouped", {"2"}),
    ],
)
def test_changes_of_layout_may_come_between_convolutions(
    networks: Networks, name: str, moved: set[str]
) -> None:
    _, network = networks(name)
    found = {layer.name: layer.layout for layer in network.layers if layer.layout is not None}
    assert found.keys() == moved
    for layer in network.layers:
        if layer.layout is not None:
            assert layer.spec is not None
            assert layer.layout.kind == "layout"
            assert (layer.layout.size, layer.layout.rows) == (layer.spec.size, layer.spec.rows)
            assert (
                max(one.full[0] for one in network.specs()[layer.layout])
                >= layer.point(network.full)[0]
            )


class Moving(ByMacs):
    """A device that has to move images narrower than a step."""

    def time(self, spec: LayerSpec, point: Point) -> Estimate:
        return Estimate(7.0, False) if spec.kind == "layout" else super().time(spec, point)


@pytest.mark.parametrize(
    ("step", "kept", "added"), [(16, 12, 0), (16, 9, 0), (16, 8, 7.0), (16, 4, 3.5), (4, 4, 0)]
)
def test_up_to_half_a_step_an_image_is_moved(
    networks: Networks, step: int, kept: int, added: float
) -> None:
    graph, network = networks("plain")
    number = next(n for n, layer in enumerate(network.layers) if layer.layout is not None)
    narrow = graph.full.copy()
    narrow[0] = kept
    plain = Predictor(network, ByMacs(Path("none"), {}, step))
    moving = Predictor(network, Moving(Path("none"), {}, step))
    plain.network = replace(network, layers=tuple(replace(n, layout=None) for n in network.layers))
    assert moving.layer_us(number, narrow) == pytest.approx(plain.layer_us(number, narrow) + added)
