"""Times per layer: from the runtime's nodes to the file's layers, side by side."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from tiny_onnx import ConvModel, save
from torch import Tensor, nn

from prune2deploy.channels import cut, trace
from prune2deploy.errors import DeviceError
from prune2deploy.export import export_model_file
from prune2deploy.latency import ProfileOptions, format_layers, profile_layers
from prune2deploy.latency.layer_names import FileGraph, read_graph
from prune2deploy.latency.layers import LayersResult, layers_from_answer

CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def residual(path: Path, width: int = 8, named: bool = True, blocks: int = 2) -> Path:
    """A stem and residual blocks: Conv, Relu, then Conv, Add, Relu each."""
    weights = [weight("stem.weight", width, 3, 3, 3)]
    nodes = [
        ("Conv", ["x", "stem.weight"], ["c"], CONV),
        ("Relu", ["c"], ["r"], {}),
    ]
    last = "r"
    for i in range(blocks):
        # Numbered from behind: no number tells which is which in a longer file.
        number = blocks - i
        weights.append(weight(f"blocks.{number}.conv.weight", width, width, 3, 3))
        nodes += [
            ("Conv", [last, f"blocks.{number}.conv.weight"], [f"c{i}"], CONV),
            ("Add", [f"c{i}", last], [f"a{i}"], {}),
            ("Relu", [f"a{i}"], [f"r{i}"], {}),
        ]
        last = f"r{i}"
    nodes.append(("GlobalAveragePool", [last], ["y"], {}))
    made = [
        helper.make_node(op, ins, outs, name=f"node_{op}_{i}" if named else "", **attributes)
        for i, (op, ins, outs, attributes) in enumerate(nodes)
    ]
    return save(path, made, [1, 3, 16, 16], weights, TensorProto.FLOAT)


def node(name: str, op: str, index: int = 99, **tensors: Any) -> dict[str, Any]:
    """What the probe says of an executed node."""
    figures = {"q1": 900.0, "median": 1000.0, "q3": 1100.0, "output_shapes": None}
    return {"name": name, "op": op, "index": index, "inputs": None, "outputs": None} | {
        **figures,
        **tensors,
    }


def answer(*models: list[dict[str, Any]]) -> dict[str, Any]:
    quartiles = {"q1": 1.0, "median": 5000.0, "q3": 9.0}
    facts = {"runs": 50, "plain_run_us": {"median": 4000.0}, "profiled_run_us": quartiles}
    outside = {"outside_nodes_us": {"median": 500.0}}
    setup = dict.fromkeys(("versions", "machine", "state"))
    return {"models": [{"nodes": nodes, **facts, **outside} for nodes in models], **setup}


def judged(paths: dict[str, Path], *models: list[dict[str, Any]]) -> LayersResult:
    return layers_from_answer("pi", paths, ProfileOptions(threads=1), answer(*models))


def text_of(result: LayersResult, **options: Any) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    for part in format_layers(result, **options):
        console.print(part, markup=False)
    return console.export_text()


def origin(graph: FileGraph, executed: dict[str, Any]) -> tuple[str, str] | None:
    place = graph.origin(executed)
    return None if place is None else (graph.nodes[place].layer, graph.nodes[place].op)


@pytest.mark.parametrize("named", [True, False])
def test_nodes_are_found_by_the_tensors_that_blocked_layouts_name_them_after(
    named: bool, tmp_path: Path
) -> None:
    graph = read_graph(residual(tmp_path / "m.onnx", named=named))
    # Called after the activation that was fused into it, or after its own output.
    assert origin(graph, node("r_nchwc", "Conv")) == ("stem", "Conv")
    assert origin(graph, node("c1_nchwc_token_7", "Conv")) == ("blocks.1.conv", "Conv")
    pooling = origin(graph, node("y_nchwc", "GlobalAveragePool"))
    assert pooling == ("node_GlobalAveragePool_8" if named else "y", "GlobalAveragePool")
    assert origin(graph, node("ReorderOutput", "ReorderOutput", outputs=["r1"])) is None
    assert origin(graph, node("of_nothing_nchwc", "Conv")) is None


@pytest.mark.parametrize(
    ("name", "op"),
    [("node_Conv_2", "FusedConv"), ("fused node_Conv_2", "FusedConv"), ("node_Conv_2/X/", "Conv")],
)
def test_nodes_are_found_by_names_that_the_runtime_extends(
    name: str, op: str, tmp_path: Path
) -> None:
    graph = read_graph(residual(tmp_path / "m.onnx"))
    assert origin(graph, node(name, op)) == ("blocks.2.conv", "Conv")
    assert origin(graph, node("node_Conv_", op)) is None


def test_nameless_nodes_are_found_by_their_tensors_or_their_place(tmp_path: Path) -> None:
    graph = read_graph(residual(tmp_path / "m.onnx", named=False))
    fused = node("FusedConv_9", "FusedConv", 9, inputs=["r0", "blocks.1.conv.weight", "", "r0"])
    assert origin(graph, {**fused, "outputs": ["r1"]}) == ("blocks.1.conv", "Conv")
    merged = node("FusedConv_9", "FusedConv", 9, inputs=["x", "new"], outputs=["r"])
    assert origin(graph, merged) == ("stem", "Conv")
    moved = node("Transpose_11", "Transpose", 11, inputs=["x"], outputs=["r"])
    assert origin(graph, moved) is None
    assert origin(graph, node("Add_3", "Add", 3)) == ("a0", "Add")
    assert origin(graph, node("Mul_3", "Mul", 3)) is None  # there is an Add


def test_layers_come_from_weights_also_behind_other_nodes_or_from_the_bias_behind(
    tmp_path: Path,
) -> None:
    weights = [
        weight("a.weight_quantized", 4, 3),
        weight("val_1", 4, 4),
        weight("b.0.bias", 4),
        weight("shared.weight", 4, 4),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["a.weight_quantized", "s"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["m"], name="mm"),
        helper.make_node("MatMul", ["m", "val_1"], ["n"]),
        helper.make_node("Add", ["n", "b.0.bias"], ["o"]),
        helper.make_node("MatMul", ["o", "shared.weight"], ["p"], name="first"),
        helper.make_node("MatMul", ["p", "shared.weight"], ["y"]),
    ]
    graph = read_graph(save(tmp_path / "m.onnx", nodes, [1, 3], weights, TensorProto.FLOAT))
    assert [one.layer for one in graph.nodes[2:]] == ["a", "b.0", "b.0", "first", "y"]
    assert len({one.key for one in graph.nodes}) == len(graph.nodes)


def test_layers_stand_side_by_side_in_order_of_execution(tmp_path: Path) -> None:
    """The second has one block less; a node's number tells nothing there, its layer does."""
    paths = {
        "all": residual(tmp_path / "a.onnx", width=8),
        "less": residual(tmp_path / "b.onnx", width=5, blocks=1),
    }
    padded = [{"dtype": "float", "shape": [1, 8, 16, 16]}]
    result = judged(
        paths,
        [
            node("r_nchwc", "Conv", output_shapes=padded),
            node("r0_nchwc", "Conv", output_shapes=padded),
            node("r1_nchwc", "Conv", output_shapes=padded),
            node("y_nchwc", "GlobalAveragePool"),
            node("ReorderOutput", "ReorderOutput", median=30.0),
        ],
        [
            node("r_nchwc", "Conv", output_shapes=padded, median=250.0),
            node("c0_nchwc", "Conv", output_shapes=padded),
            node("ReorderOutput", "ReorderOutput", median=10.0),
            node("ReorderOutput_token_4", "ReorderOutput", median=20.0),
            node("node_Add_3", "Add"),
            node("node_Relu_4", "Relu"),
            node("node_GlobalAveragePool_5", "GlobalAveragePool", median=20000.0),
        ],
    )
    assert [(one.name, one.operator) for one in result.layers] == [
        ("stem", "Conv+Relu"),
        ("blocks.2.conv", "Conv+Add+Relu"),
        ("blocks.1.conv", "Conv+Add+Relu → Conv"),
        ("node_Add_3", "Add"),
        ("node_Relu_4", "Relu"),
        ("node_GlobalAveragePool_8", "GlobalAveragePool"),
    ]
    stem, second, first, added, *_ = (one.times for one in result.layers)
    assert stem[0] is not None
    assert stem[1] is not None
    assert (stem[0].median_ms, stem[0].channels, stem[0].run_channels) == (1.0, 8, 8)
    assert (stem[1].median_ms, stem[1].channels, stem[1].run_channels) == (0.25, 5, 8)
    assert second[1] is None
    assert first[1] is not None
    assert added[0] is None
    (reorder,) = result.added
    assert [one.median_ms for one in reorder.times if one] == [0.03, 0.03]

    text = text_of(result)
    assert "8 → 5 (8)" in text
    assert "-75 %" in text
    assert "×20.0" in text
    assert "ReorderOutput ×1 → 2" in text
    assert "all 4 → 5 ms (+25.0 %)" in text
    assert "medians add up to 4.03 ms of a run's 5 ms" not in text  # and 0.5 outside: 4.53
    document = json.loads(json.dumps(result.to_dict()))
    assert document["layers"][0]["times"][1]["median_ms"] == 0.25
    assert document["layers"][1]["times"][1] is None
    assert document["added_by_the_runtime"][0]["times"][1]["nodes"][0] == "ReorderOutput"


def test_a_long_table_shows_what_takes_most_time_and_sums_up_the_rest(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx", blocks=30)
    executed = [node(f"c{i}_nchwc", "Conv", median=1000.0 + i if i % 2 else 1.0) for i in range(30)]
    result = judged({"m": path}, [node("r_nchwc", "Conv", median=2.0), *executed])
    text = text_of(result)
    shown = [line.split()[1] for line in text.splitlines() if ".conv" in line]
    odd = [f"blocks.{30 - i}.conv" for i in range(1, 30, 2)]
    assert len(odd) == 15
    assert [name for name in shown if name in odd] == odd
    assert len(shown) + ("stem" in text) == 20
    assert "11 other layers" in text
    assert "0.011" in text  # those of 1 µs each, as the stem takes 2
    assert "other layers" not in text_of(result, every=True)


def test_a_run_that_is_longer_than_its_layers_is_said_to_be_disturbed(tmp_path: Path) -> None:
    result = judged({"m": residual(tmp_path / "m.onnx")}, [node("r_nchwc", "Conv")])
    assert "m: its layers' medians add up to 1 ms of a run's 5 ms" in text_of(result)


class Small(nn.Module):
    """Two convolutions around an addition, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.body = nn.Conv2d(16, 32, 3, padding=1)
        self.tail = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.tail(torch.relu(self.body(x))))
        return self.head(x.mean((2, 3)))


def test_every_convolution_of_an_export_is_found_before_and_after_pruning(
    tmp_path: Path, quick_options: ProfileOptions
) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    kept = [np.arange(20 if group.size == 32 else group.size) for group in graph.groups]
    small = cut(model, graph.plan(kept))
    paths = [tmp_path / "original.onnx", tmp_path / "pruned.onnx"]
    for network, path in zip((model, small), paths, strict=True):
        export_model_file(network, path, input_shape=(3, 16, 16))
    result = profile_layers(paths, options=quick_options)
    found = {one.name: one for one in result.layers}
    for name, channels in (("stem.0", (16, 16)), ("body", (32, 20)), ("tail", (16, 16))):
        times = found[name].times
        assert [time and time.channels for time in times] == list(channels)
        assert all(time and time.operator.startswith("Conv") for time in times)
        assert all(time and time.median_ms > 0 for time in times)
    assert [time and time.operator for time in found["head"].times] == ["Gemm", "Gemm"]
    assert [one.name for one in result.models] == ["original", "pruned"]
    for one in result.models:
        assert one.nodes_ms <= 1.05 * one.profiled_ms
    text = text_of(result)
    assert "32 → 20" in text
    assert "they are no latencies" in text


def test_a_file_without_names_is_profiled(
    conv_model: ConvModel, quick_options: ProfileOptions
) -> None:
    result = profile_layers([conv_model(4)], options=quick_options)
    assert [one.name for one in result.layers] == ["h", "y"]  # what they give
    assert "change" not in text_of(result)


def test_a_file_of_the_runtimes_own_format_has_its_nodes_for_layers(tmp_path: Path) -> None:
    path = tmp_path / "m.ort"
    path.write_bytes(b"\xff" * 40)
    result = judged({"m": path}, [node("r_nchwc", "Conv"), node("ReorderOutput", "ReorderOutput")])
    assert [one.name for one in result.layers] == ["r_nchwc", "ReorderOutput"]
    assert result.added == ()


def test_errors_are_those_of_a_measurement(
    unknown_operator_model: Path, tmp_path: Path, quick_options: ProfileOptions
) -> None:
    with pytest.raises(DeviceError, match=r"model 'frob': .*Frobnicate.*older opset"):
        profile_layers([unknown_operator_model], options=quick_options)
    with pytest.raises(DeviceError, match=r"No model file at .*gone.onnx"):
        profile_layers([tmp_path / "gone.onnx"])


def test_paths_of_older_exporters_hold_where_numbers_would_not(tmp_path: Path) -> None:
    def chain(path: Path, names: list[str]) -> Path:
        nodes = [
            helper.make_node("Relu", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"], name=name)
            for i, name in enumerate(names)
        ]
        nodes.append(helper.make_node("Identity", [f"t{len(names)}"], ["y"]))
        return save(path, nodes, [1, 3], [], TensorProto.FLOAT)

    long = read_graph(chain(tmp_path / "a.onnx", ["/a/Relu", "/b/Relu", "/c/Relu"]))
    short = read_graph(chain(tmp_path / "b.onnx", ["/a/Relu", "/c/Relu"]))
    assert [long.nodes[i].key for i in (0, 2)] == [one.key for one in short.nodes[:2]]
