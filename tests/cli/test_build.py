"""prune2deploy build: engines, with TensorRT-RTX where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_onnx import ConvModel
from typer.testing import CliRunner

from prune2deploy.cli import app
from prune2deploy.cli.build import parse_batch
from prune2deploy.export import export_model_file
from prune2deploy.export.precision import made_for_onnx_runtime, to_int8
from prune2deploy.latency.engines import file_precision


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["build", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def typed(path: Path) -> Path:
    """The same file with the type of its output, which TensorRT wants to know."""
    proto = onnx.load(path)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 16, 16])
    proto.graph.output[0].CopyFrom(output)
    onnx.save(proto, path)
    return path


def test_a_device_without_engines_says_what_to_write(conv_model: ConvModel) -> None:
    code, _, said = run(conv_model(4))
    assert code == 1
    assert "runs models with onnxruntime, which needs no engine" in said
    assert "--runtime tensorrt or tensorrt_rtx" in said


def test_a_missing_file() -> None:
    code, _, said = run("absent.onnx", "--runtime", "tensorrt")
    assert code == 1
    assert "No model file at absent.onnx" in said


@pytest.mark.parametrize("text", ["1", "1,2", "4,2,1", "0,1,2", "a,b,c"])
def test_batches_that_are_none(text: str) -> None:
    code, _, said = run("m.onnx", "--batch", text)
    assert code == 2
    assert "such as 1,4,16" in said
    assert parse_batch("1,4,16") == (1, 4, 16)


def test_an_engine_is_built_and_copied(
    conv_model: ConvModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("--runtime", "tensorrt_rtx", "--capabilities", "SM86", "--output", tmp_path / "out")
    model = typed(conv_model(8))
    code, told, said = run(model, *words)
    assert code == 0, said
    assert "Built in" in told
    assert "fp32, for SM86" in told
    assert "could not be read" in told, "without a GPU nothing is claimed of its layers"
    assert (tmp_path / "out/conv8.engine").stat().st_size > 1000
    assert (tmp_path / "out/conv8.engine.json").is_file()
    code, told, _ = run(model, *words)
    assert code == 0
    assert "Found, built before" in told


def test_int8_for_onnx_runtime_is_recognised(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1)
    )
    export_model_file(network.eval(), tmp_path / "m.onnx", input_shape=(3, 8, 8))
    images = [np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)]
    for kind in ("onnxruntime", "tensorrt"):
        to_int8(tmp_path / "m.onnx", tmp_path / f"{kind}.onnx", batches=images, runtime=kind)
    assert made_for_onnx_runtime(tmp_path / "onnxruntime.onnx")
    assert not made_for_onnx_runtime(tmp_path / "tensorrt.onnx")
    assert not made_for_onnx_runtime(tmp_path / "m.onnx")
    assert file_precision(tmp_path / "tensorrt.onnx") == "int8"
    code, _, said = run(tmp_path / "onnxruntime.onnx", "--runtime", "tensorrt")
    assert code == 1
    assert "is int8 for ONNX Runtime" in said
    assert "runtime='tensorrt'" in said
