from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from precision_models import (
    SHAPE,
    Images,
    exported,
    images,
    kinds_of_weights,
    network,
)

from prune2deploy.export.precision import (
    compare,
    precision_of,
    to_fp16,
    to_int8,
)
from prune2deploy.export.precision.calibration import _rebin
from prune2deploy.export.precision.kinds import layer_names, read


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("fp32") / "model.onnx")


@pytest.fixture(scope="module")
def layers(source: Path) -> list[str]:
    return layer_names(read(source))


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
