from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from prune2deploy.errors import ExportError
from prune2deploy.export import export_model_file
from prune2deploy.export.precision import (
    compare,
    precision_of,
    sensitivity,
    to_fp16,
    to_int8,
    to_int8_within,
)
from prune2deploy.export.precision.calibration import _rebin
from prune2deploy.export.precision.kinds import layer_names, read
from prune2deploy.export.precision.sensitivity import _fewest

SHAPE = (3, 8, 8)
Images = NDArray[np.float32]


class Residual(nn.Module):
    """Five layers: three in a row, one of them beside a skip connection, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fourth = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.third(torch.relu(self.second(x))) + x)
        return self.last(torch.relu(self.fourth(x)).mean((2, 3)))


def network() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def images(*sizes: int, seed: int = 0) -> list[Images]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, *SHAPE), np.float32) for size in sizes]


def exported(model: nn.Module, path: Path, batch: int = 2) -> Path:
    export_model_file(model, path, input_shape=SHAPE, batch=batch, metadata={"classes": '["é"]'})
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("fp32") / "model.onnx")


@pytest.fixture(scope="module")
def layers(source: Path) -> list[str]:
    return layer_names(read(source))


def kinds_of_weights(path: Path) -> dict[str, str]:
    return {
        tensor.name: TensorProto.DataType.Name(tensor.data_type)
        for tensor in onnx.load(path).graph.initializer
    }


# fp16


def test_fp16_is_close_and_its_weights_are_half(source: Path, tmp_path: Path) -> None:
    result = to_fp16(source, tmp_path / "half.onnx", batches=images(3, 2))
    assert (result.kept, result.images) == ({}, 6)  # The last batch of two was filled.
    assert precision_of(source) == {"fp32": 5, "fp16": 0, "int8": 0}
    assert precision_of(result.path) == {"fp32": 0, "fp16": 5, "int8": 0}
    assert set(kinds_of_weights(result.path).values()) == {"FLOAT16"}
    difference = compare(source, result.path, images(4, 3))
    assert 0 < difference.max_rel_diff < 2e-3
    assert (difference.equal_argmax, difference.samples) == (1.0, 7)


def test_what_is_around_the_layers_stays(source: Path, tmp_path: Path) -> None:
    before = onnx.load(source)
    to_fp16(source, tmp_path / "half.onnx")
    to_int8(source, tmp_path / "bytes.onnx", batches=images(4))
    for name in ("half.onnx", "bytes.onnx"):
        after = onnx.load(tmp_path / name)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert list(after.metadata_props) == list(before.metadata_props) != []
        assert after.producer_name == "prune2deploy"
        onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("position", range(5))
def test_a_layer_to_keep_stays_in_fp32(
    position: int, source: Path, layers: list[str], tmp_path: Path
) -> None:
    result = to_fp16(source, tmp_path / "half.onnx", keep=[layers[position]])
    assert result.kept == {layers[position]: "asked for"}
    assert precision_of(result.path) == {"fp32": 1, "fp16": 4, "int8": 0}
    kinds = kinds_of_weights(result.path)
    (node,) = (n for n in onnx.load(result.path).graph.node if n.name == layers[position])
    assert {kinds[name] for name in node.input[1:]} == {"FLOAT"}
    assert compare(source, result.path, images(4)).max_rel_diff < 2e-3


def overflowing() -> Residual:
    """Only between the second and third layer there are numbers of about 1e5."""
    model = network()
    factors = {"first": (100, 100), "second": (2e3, 2e5), "third": (5e-4, 100), "fourth": (0.01, 1)}
    with torch.no_grad():
        for name, (weight, bias) in factors.items():
            model.get_submodule(name).weight *= weight
            model.get_submodule(name).bias *= bias
    return model


def error_in_fp16(source: Path, half: Path) -> float:
    """Compute what the file says: ONNX Runtime on a CPU takes fp32 for much that is fp16."""
    (x,) = images(2, seed=1)
    expected, found = (
        ReferenceEvaluator(onnx.load(path)).run(None, {"input": x})[0] for path in (source, half)
    )
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_layers_that_overflow_are_found_and_kept_with_what_carries_their_numbers(
    layers: list[str], tmp_path: Path
) -> None:
    path = exported(overflowing(), tmp_path / "model.onnx")
    result = to_fp16(path, tmp_path / "half.onnx", batches=images(4))
    assert {name for name in result.kept if name in layers} == {layers[1], layers[2]}
    assert all("fp16 ends at 65504" in reason for reason in result.kept.values())
    assert precision_of(result.path) == {"fp32": 2, "fp16": 3, "int8": 0}
    assert error_in_fp16(path, result.path) < 5e-3
    unseen = to_fp16(path, tmp_path / "unseen.onnx")
    assert (unseen.kept, unseen.images) == ({}, 0)
    with np.errstate(all="ignore"):
        assert not error_in_fp16(path, unseen.path) < 0.1
    # The two layers alone are not enough: their numbers must not go through fp16 either.
    asked = to_fp16(path, tmp_path / "asked.onnx", keep=layers[1:3])
    with np.errstate(all="ignore"):
        assert not error_in_fp16(path, asked.path) < 0.1


def by_hand(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Images], opset: int = 18
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path
    )
    return path


def test_weights_that_a_kept_and_another_layer_share(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "a"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "b"),
    ]
    path = by_hand(tmp_path / "m.onnx", nodes, {"w": weight})
    for keep in (["a"], ["b"]):
        result = to_fp16(path, tmp_path / "half.onnx", keep=keep)
        assert precision_of(result.path) == {"fp32": 1, "fp16": 1, "int8": 0}
        x = np.ones((1, 4), np.float32)
        assert compare(path, result.path, [x]).max_rel_diff < 2e-3
    everything = to_fp16(path, tmp_path / "full.onnx", keep=["a", "b"])
    assert precision_of(everything.path) == {"fp32": 2, "fp16": 0, "int8": 0}
    assert compare(path, everything.path, [np.ones((1, 4), np.float32)]).max_rel_diff == 0


def test_nodes_without_names_get_one_and_weights_out_of_reach_are_kept(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float32) * 1e5, "v": np.eye(4, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    path = by_hand(tmp_path / "m.onnx", nodes, weights)
    result = to_fp16(path, tmp_path / "half.onnx")
    assert list(result.kept) == ["MatMul_1"]
    assert "'w' holds 1e+05" in result.kept["MatMul_1"]


def test_operators_without_fp16_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("CumSum", ["h", "axis"], ["y"], "sums"),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "axis": np.array(1)}
    result = to_fp16(by_hand(tmp_path / "m.onnx", nodes, weights), tmp_path / "half.onnx")
    assert result.kept == {"sums": "CumSum has no fp16"}
    assert precision_of(result.path)["fp16"] == 1


# int8


def scales(path: Path) -> dict[str, Images]:
    return {
        tensor.name: numpy_helper.to_array(tensor).copy()
        for tensor in onnx.load(path).graph.initializer
        if tensor.name.endswith("_scale")
    }


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_has_a_scale_per_channel_and_answers_alike(
    runtime: str, source: Path, layers: list[str], tmp_path: Path
) -> None:
    result = to_int8(source, tmp_path / "q.onnx", batches=images(32), runtime=runtime)
    assert (result.quantized, result.kept, result.images) == (tuple(layers), (), 32)
    assert precision_of(result.path) == {"fp32": 0, "fp16": 0, "int8": 5}
    found = {name: value.size for name, value in scales(result.path).items()}
    for layer, channels in (("first", 8), ("second", 8), ("third", 8), ("fourth", 16)):
        assert found[f"{layer}.weight_scale"] == channels
    assert found["last.weight_scale"] == 6
    difference = compare(source, result.path, images(200, seed=1))
    assert difference.equal_argmax is not None
    assert difference.equal_argmax > 0.9
    assert difference.max_rel_diff < 0.1
    assert result.path.stat().st_size < source.stat().st_size * 3  # Tiny: mostly graph.


def test_for_tensorrt_zero_points_are_zero_and_there_is_no_int32(
    source: Path, tmp_path: Path
) -> None:
    to_int8(source, tmp_path / "q.onnx", batches=images(8), runtime="tensorrt")
    graph = onnx.load(tmp_path / "q.onnx").graph
    assert "INT32" not in kinds_of_weights(tmp_path / "q.onnx").values()
    points = [t for t in graph.initializer if t.name.endswith("_zero_point")]
    assert points
    assert not any(numpy_helper.to_array(point).any() for point in points)
    # Between a convolution and its ReLU a pair would keep the two apart.
    makers = {out: node.op_type for node in graph.node for out in node.output}
    assert {makers[n.input[0]] for n in graph.node if n.op_type == "Relu"} <= {"Conv", "Add"}


def test_methods_differ_where_data_has_outliers(source: Path, tmp_path: Path) -> None:
    batches = images(64)
    batches[0][5, 1, 2, 3] = 1000.0
    found = {}
    for method in ("minmax", "percentile", "entropy"):
        to_int8(source, tmp_path / "q.onnx", batches=batches, method=method)
        found[method] = float(scales(tmp_path / "q.onnx")["input_scale"])
    assert found["minmax"] > 1000 / 256
    assert found["percentile"] < found["minmax"] / 5
    assert len(set(found.values())) == 3


def test_the_same_bytes_in_another_process(source: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from prune2deploy.export.precision import to_fp16, to_int8\n"
        "source, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "batches = [np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32)]\n"
        "to_int8(source, folder / 'q.onnx', batches=batches)\n"
        "to_fp16(source, folder / 'h.onnx', batches=batches)\n"
    )
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    subprocess.run(
        [sys.executable, "-c", program, str(source), str(there)],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # Sets have another order there.
        check=True,
        capture_output=True,
    )
    to_int8(source, here / "q.onnx", batches=images(8))
    to_fp16(source, here / "h.onnx", batches=images(8))
    for name in ("q.onnx", "h.onnx"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


def test_no_more_images_are_read_than_the_method_needs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune2deploy.export.precision.calibration.MOST_IMAGES", {"percentile": 10})
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield images(4)[0]

    result = to_int8(source, tmp_path / "q.onnx", batches=endless())  # type: ignore[arg-type]
    assert result.images == 10
    assert len(taken) == 3


def test_groups_of_images_give_the_same_range(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_int8(source, tmp_path / "a.onnx", batches=images(16, 16), method="minmax")
    monkeypatch.setattr("prune2deploy.export.precision.calibration._GROUP_BYTES", 1)
    to_int8(source, tmp_path / "b.onnx", batches=images(16, 16), method="minmax")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_images_of_zeros_first_do_not_ask_for_endless_bins(
    method: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune2deploy.export.precision.calibration._GROUP_BYTES", 1)
    batches = [np.zeros((2, *SHAPE), np.float32), images(4)[0] * 1e5]
    result = to_int8(source, tmp_path / "q.onnx", batches=batches, method=method)
    difference = compare(source, result.path, [images(4, seed=1)[0] * 1e5])
    assert difference.max_rel_diff < 0.3


@pytest.mark.parametrize("counts", [4, 5])
def test_a_histogram_keeps_its_counts_when_its_bins_widen(counts: int) -> None:
    edges = np.linspace(0 if counts == 4 else -1, 1, 9, dtype=np.float32)
    smallest, largest = edges[0], edges[-1]
    old = (np.arange(8), edges, smallest, largest, *([largest] if counts == 5 else []))
    histograms = {"near": old, "far": old}
    _rebin(histograms, "near", 1.5, 8)
    assert histograms["near"] is old
    _rebin(histograms, "far", 1000.0, 8)
    moved, wider, *ends = histograms["far"]
    assert (len(moved), moved.sum(), wider[-1]) == (8, 28, 1000)
    assert ends == [smallest, largest, *([1000] if counts == 5 else [])]
    assert np.flatnonzero(moved).tolist() == ([0] if counts == 4 else [3, 4])


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_layer_to_keep_and_what_follows_it_are_not_quantized(
    runtime: str, source: Path, layers: list[str], tmp_path: Path
) -> None:
    result = to_int8(
        source, tmp_path / "q.onnx", batches=images(8), keep=[layers[2]], runtime=runtime
    )
    assert result.kept == (layers[2],)
    assert precision_of(result.path) == {"fp32": 1, "fp16": 0, "int8": 4}
    graph = onnx.load(result.path).graph
    (layer,) = (node for node in graph.node if node.name == layers[2])
    readers = {node.op_type for node in graph.node if layer.output[0] in node.input}
    assert readers == {"Add"}


# How much each layer costs


def with_a_bad_layer() -> Residual:
    """Weights of the fourth layer that no int8 holds: one is 1e4 and reads a channel of zeros."""
    model = network()
    with torch.no_grad():
        model.first.weight[0], model.first.bias[0] = 0.0, -1.0
        model.third.weight[0], model.third.bias[0] = 0.0, -1.0
        model.fourth.weight[:, 0] = 1e4
    return model


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(with_a_bad_layer(), tmp_path_factory.mktemp("bad") / "model.onnx", batch=8)


def agreement_with(path: Path) -> Callable[[Path], float]:
    def judge(file: Path) -> float:
        return -compare(path, file, images(16, seed=1)).max_rel_diff

    return judge


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_planted_bad_layer_is_the_worst_and_alone_is_given_back(
    runtime: str, bad: Path, layers: list[str], tmp_path: Path
) -> None:
    costs = sensitivity(bad, images(16), runtime=runtime)
    assert sorted(cost.name for cost in costs) == sorted(layers)
    assert (costs[0].name, costs[0].operator) == (layers[3], "Conv")
    assert costs[0].relative_error > 10 * costs[1].relative_error > 0
    path = tmp_path / "q.onnx"
    within = to_int8_within(
        bad, path, judge=agreement_with(bad), floor=-0.1, batches=images(16), runtime=runtime
    )
    assert within.result.kept == (layers[3],)
    assert [count for count, _ in within.judged] == [0, 1]
    assert within.judged[0][1] < -0.1 <= within.score == agreement_with(bad)(path)
    assert precision_of(path) == {"fp32": 1, "fp16": 0, "int8": 4}


def test_everything_in_int8_where_that_is_good_enough(source: Path, tmp_path: Path) -> None:
    within = to_int8_within(
        source, tmp_path / "q.onnx", judge=lambda _: 0.9, floor=0.9, batches=images(8)
    )
    assert (within.result.kept, within.costs) == ((), ())
    assert within.judged == ((0, 0.9),)


def test_a_floor_out_of_reach_is_reported_and_nothing_written(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    with pytest.raises(
        ExportError, match=r"itself, all in fp32, has 0\.5, below the floor of 0\.9"
    ):
        to_int8_within(source, path, judge=lambda _: 0.5, floor=0.9, batches=images(8))

    def only_fp32(file: Path) -> float:
        return 0.0 if precision_of(file)["int8"] else 1.0

    with pytest.raises(
        ExportError, match=r"No int8 version .* with a single layer in int8 it is 0"
    ):
        to_int8_within(source, path, judge=only_fp32, floor=0.9, batches=images(8))
    with pytest.raises(ExportError, match="itself, all in fp32, has nan"):
        to_int8_within(source, path, judge=lambda _: float("nan"), floor=0.9, batches=images(8))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20, 100])
def test_few_files_are_judged(most: int) -> None:
    for wanted in (*range(1, most + 1), None):
        asked: list[int] = []

        def reaches(count: int, wanted: int | None = wanted, asked: list[int] = asked) -> bool:
            asked.append(count)
            return wanted is not None and count >= wanted

        assert _fewest(reaches, most) == (wanted or -1)
        assert len(asked) == len(set(asked)) <= 2 * most.bit_length()
        assert all(1 <= count <= most for count in asked)
    assert _fewest(lambda _: True, 0) == -1


# What cannot be done


@pytest.mark.parametrize("convert", [to_fp16, to_int8])
def test_bad_requests_are_explained(convert: Callable[..., object], source: Path) -> None:
    target = source.with_name("never.onnx")
    with pytest.raises(ExportError, match=r"no node 'node_conv2dd'\. Did you mean"):
        convert(source, target, keep=["node_conv2dd"], batches=images(2))
    with pytest.raises(ExportError, match="cannot be read: No such file"):
        convert(source.with_name("absent"), target, batches=images(2))
    with pytest.raises(ExportError, match=r"takes float32 of shape \('n', 3, 8, 8\); got float64"):
        convert(source, target, batches=[np.zeros((1, *SHAPE))])
    with pytest.raises(ExportError, match=r"got float32 of shape \(1, 3, 8\)"):
        convert(source, target, batches=[np.zeros((1, 3, 8), np.float32)])
    with pytest.raises(ExportError, match="NaN or infinity"):
        convert(source, target, batches=[np.full((1, *SHAPE), np.nan, np.float32)])
    half = source.with_name("already.onnx")
    to_fp16(source, half)
    with pytest.raises(ExportError, match=r"holds fp16.*fp32 file"):
        convert(half, target, batches=images(2))
    broken = source.with_name("broken.onnx")
    broken.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ExportError, match="not an ONNX file, or it is cut short"):
        convert(broken, target, batches=images(2))
    assert not target.exists()


def test_what_int8_needs_is_explained(source: Path, layers: list[str], tmp_path: Path) -> None:
    target = tmp_path / "q.onnx"
    with pytest.raises(ExportError, match="no images to calibrate on"):
        to_int8(source, target, batches=[])
    with pytest.raises(ExportError, match=r"Unknown method 'entropie'\. Did you mean 'entropy'"):
        to_int8(source, target, batches=images(2), method="entropie")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="nothing is left to quantize"):
        to_int8(source, target, batches=images(2), keep=layers)
    to_int8(source, target, batches=images(2))
    with pytest.raises(ExportError, match="quantized already"):
        to_int8(target, tmp_path / "again.onnx", batches=images(2))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    old = by_hand(tmp_path / "old.onnx", nodes, {"w": np.eye(4, dtype=np.float32)}, opset=12)
    with pytest.raises(ExportError, match=r"has ONNX opset 12; int8 .* needs 13"):
        to_int8(old, target, batches=images(2))


def test_files_are_compared_on_samples_only(source: Path) -> None:
    with pytest.raises(ExportError, match="no samples"):
        compare(source, source, [])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "mixed"])
def test_tensorrt_rtx_parses_it_strongly_typed(
    precision: str, source: Path, layers: list[str], tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    if precision == "fp32":
        path = source
    elif precision == "fp16":
        to_fp16(source, path, keep=layers[1:3])
    else:
        keep = layers[2:3] if precision == "mixed" else ()
        to_int8(source, path, batches=images(8), runtime="tensorrt", keep=keep)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(path.read_bytes()), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    assert network.get_output(0).dtype == trt.float32
