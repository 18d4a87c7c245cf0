from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from precision_networks import random_images, save_network
from torch import nn

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import (
    calibrate,
    compare_files,
    precision_of,
    to_fp16,
    to_int8,
)

RUNTIMES = ["onnxruntime", "tensorrt"]


def counts(path: Path) -> dict[str, int]:
    return {name: count.layers for name, count in precision_of(path).items()}


def constants(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def quantizers(path: Path) -> Iterator[onnx.NodeProto]:
    return (node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_int8_is_close_to_the_original(
    method: Any, runtime: Any, residual_file: Path, tmp_path: Path
) -> None:
    before = residual_file.read_bytes()
    images = random_images(16, 16)
    result = to_int8(
        residual_file, tmp_path / "int8.onnx", batches=images, method=method, runtime=runtime
    )
    # The depthwise convolution and the linear layer are among the four.
    assert counts(result.path) == {"fp32": 0, "fp16": 0, "int8": 4}
    assert result.precision["int8"].weight_bytes == 216 + 72 + 64 + 40
    assert (result.method, result.samples, result.kept) == (method, 32, [])
    found = compare_files(result.path, residual_file, random_images(32, seed=1))
    assert 1e-4 < found.rms_rel_diff < 0.1
    assert found.agreement is not None
    assert found.agreement > 0.8
    assert residual_file.read_bytes() == before
    assert list(onnx.load(result.path).metadata_props) == list(
        onnx.load(residual_file).metadata_props
    )
    onnx.checker.check_model(onnx.load(result.path), full_check=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_are_symmetric_with_a_scale_per_output_channel(
    runtime: Any, residual_file: Path, tmp_path: Path
) -> None:
    to_int8(residual_file, tmp_path / "q.onnx", batches=random_images(4), runtime=runtime)
    stored, original = constants(tmp_path / "q.onnx"), constants(residual_file)
    for name in ("stem", "depthwise", "pointwise"):
        weight = original[f"{name}.weight"]
        # The largest weight of each channel is 127 steps from 0.
        expected = np.abs(weight).max(axis=(1, 2, 3)) / 127
        np.testing.assert_allclose(stored[f"{name}.weight_scale"], expected, rtol=2e-2)
        assert not stored[f"{name}.weight_zero_point"].any()
        assert stored[f"{name}.weight_quantized"].dtype == np.int8
        assert np.abs(stored[f"{name}.weight_quantized"].astype(int)).max() == 127


def test_what_onnx_runtime_is_fast_with(residual_file: Path, tmp_path: Path) -> None:
    to_int8(residual_file, tmp_path / "q.onnx", batches=random_images(4))
    stored = constants(tmp_path / "q.onnx")
    assert {stored[q.input[2]].dtype for q in quantizers(tmp_path / "q.onnx")} == {
        np.dtype(np.uint8)
    }
    assert any(stored[q.input[2]] != 0 for q in quantizers(tmp_path / "q.onnx"))
    assert stored["pointwise.bias_quantized"].dtype == np.int32
    # Everything between input and output is computed from 8 bits.
    kinds = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert not kinds & {"Relu", "Clip"}, "their limits are those of the ranges"


def test_what_tensorrt_parses(residual_file: Path, tmp_path: Path) -> None:
    to_int8(residual_file, tmp_path / "q.onnx", batches=random_images(4), runtime="tensorrt")
    stored = constants(tmp_path / "q.onnx")
    points = {
        node.input[2]
        for node in onnx.load(tmp_path / "q.onnx").graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert points
    for name in points:
        assert stored[name].dtype == np.int8
        assert not stored[name].any()
    assert stored["pointwise.bias"].dtype == np.float32
    assert not any(array.dtype == np.int32 for array in stored.values())
    # Only the inputs of layers: stem, depthwise, pointwise, head.
    assert len(list(quantizers(tmp_path / "q.onnx"))) == 4


def test_clipping_ranges_are_in_the_file(residual_file: Path, tmp_path: Path) -> None:
    images = random_images(16)
    images[0][3, 1, 4, 4] = 60.0
    scales = {}
    for method in ("minmax", "percentile", "entropy"):
        path = tmp_path / f"{method}.onnx"
        to_int8(residual_file, path, batches=images, method=method, percentile=99.9)  # type: ignore[arg-type]
        first = next(iter(quantizers(path)))
        assert first.input[0] == "input"
        scales[method] = float(constants(path)[first.input[1]])
    lowest = float(images[0].min())
    assert scales["minmax"] == pytest.approx((60 - lowest) / 255)
    assert scales["percentile"] < scales["minmax"] / 5
    assert scales["entropy"] < scales["minmax"] / 5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_that_are_to_stay(runtime: Any, residual_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    result = to_int8(
        residual_file, path, batches=random_images(4), keep=["pointwise"], runtime=runtime
    )
    assert result.kept == ["pointwise"]
    assert counts(path) == {"fp32": 1, "fp16": 0, "int8": 3}
    assert constants(path)["pointwise.weight"].dtype == np.float32
    result = to_int8(residual_file, path, batches=random_images(4), keep_ends=True, runtime=runtime)
    assert result.kept == ["stem", "head"]
    assert counts(path) == {"fp32": 2, "fp16": 0, "int8": 2}
    # With all of them given back, nothing is rounded.
    everything = ["stem", "depthwise", "pointwise", "head"]
    to_int8(residual_file, path, batches=random_images(4), keep=everything, runtime=runtime)
    assert compare_files(path, residual_file, random_images(4)).max_abs_diff == 0


def test_what_a_kept_layer_returns_is_not_rounded_by_an_addition(
    residual_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    to_int8(residual_file, path, batches=random_images(4), keep=["pointwise", "head"])
    graph = onnx.load(path).graph
    add = next(node for node in graph.node if node.op_type == "Add")
    kept = next(n for n in graph.node if n.op_type == "Conv" and "pointwise.weight" in n.input)
    assert kept.output[0] in add.input
    assert add.output[0] not in {q.input[0] for q in quantizers(path)}


def test_ranges_can_be_made_once_and_used_again(residual_file: Path, tmp_path: Path) -> None:
    images = random_images(8)
    calibration = calibrate(residual_file, images, "entropy")
    to_int8(residual_file, tmp_path / "a.onnx", calibration=calibration)
    to_int8(residual_file, tmp_path / "b.onnx", batches=images, method="entropy")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("opset", [11, 17])
def test_older_opsets(opset: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, channels, 3, 3), np.float32), name)
        for name, channels in (("v.weight", 3), ("w.weight", 4))
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "v.weight"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("Conv", ["r", "w.weight"], ["y"]),
    ]
    infos = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [2, 3, 12, 12]), ("y", [2, 4, 8, 8]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    opsets = [onnx.helper.make_opsetid("", opset)]
    source = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), source)
    result = to_int8(source, tmp_path / "q.onnx", batches=random_images(4), keep=["w"])
    assert counts(result.path) == {"fp32": 1, "fp16": 0, "int8": 1}
    # Scales per channel came with 13.
    assert onnx.load(result.path).opset_import[0].version == max(opset, 13)
    assert compare_files(result.path, source, random_images(4)).rms_rel_diff < 0.1


def test_a_layer_that_is_called_twice(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    source = save_network(Twice(), tmp_path / "model.onnx")
    result = to_int8(source, tmp_path / "q.onnx", batches=random_images(4))
    assert counts(result.path)["int8"] == 2
    assert compare_files(result.path, source, random_images(4)).rms_rel_diff < 0.1


def test_errors(residual_file: Path, tmp_path: Path) -> None:
    target, images = tmp_path / "q.onnx", random_images(1)
    with pytest.raises(ExportError, match=r"'tensort' does not exist. Did you mean 'tensorrt'"):
        to_int8(residual_file, target, batches=images, runtime="tensort")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="no images to calibrate on"):
        to_int8(residual_file, target)
    with pytest.raises(ExportError, match=r"no layer 'stemm'.*Did you mean 'stem'"):
        to_int8(residual_file, target, batches=images, keep=["stemm"])
    torch.manual_seed(0)
    other = save_network(nn.Sequential(nn.Conv2d(3, 2, 3)), tmp_path / "other.onnx")
    with pytest.raises(ExportError, match="calibration has no range for"):
        to_int8(residual_file, target, calibration=calibrate(other, images))
    to_fp16(residual_file, tmp_path / "half.onnx")
    with pytest.raises(ExportError, match="with constant fp32 weights"):
        to_int8(tmp_path / "half.onnx", target, batches=images)
    proto = onnx.load(residual_file)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, tmp_path / "dynamic.onnx")
    with pytest.raises(ExportError, match="not static"):
        to_int8(tmp_path / "dynamic.onnx", target, batches=images)
    assert not target.exists()


def test_comparing_a_file_with_itself_and_with_a_broken_one(
    residual_file: Path, tmp_path: Path
) -> None:
    same = compare_files(residual_file, residual_file, random_images(3, 2))
    assert (same.max_abs_diff, same.rms_rel_diff, same.agreement, same.samples) == (0, 0, 1.0, 5)
    proto = onnx.load(residual_file)
    bias = next(t for t in proto.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), bias.name))
    onnx.save(proto, tmp_path / "broken.onnx")
    broken = compare_files(tmp_path / "broken.onnx", residual_file, random_images(3))
    assert broken.max_rel_diff == broken.rms_rel_diff == float("inf")
    with pytest.raises(ExportError, match="no images to compare"):
        compare_files(residual_file, residual_file, [])


def test_quantised_operators_count_as_int8(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.int8), "w")
    scalars = [
        numpy_helper.from_array(np.float32(1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    ]
    zero = numpy_helper.from_array(np.int8(0), "wz")
    node = onnx.helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z"], ["y"])
    infos = [
        onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, [1, channels, 4, 4])
        for name, channels in (("x", 3), ("y", 2))
    ]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:], [weight, zero, *scalars])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "q.onnx")
    found = precision_of(tmp_path / "q.onnx")
    assert (found["int8"].layers, found["int8"].weight_bytes) == (1, 6)
