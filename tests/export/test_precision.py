from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from precision_models import (
    SHAPE,
    by_hand,
    exported,
    images,
    network,
)

from prune2deploy.errors import ExportError
from prune2deploy.export.precision import (
    compare,
    to_fp16,
    to_int8,
)
from prune2deploy.export.precision.kinds import layer_names, read


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("fp32") / "model.onnx")


@pytest.fixture(scope="module")
def layers(source: Path) -> list[str]:
    return layer_names(read(source))


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
