"""Engines that TensorRT-RTX really builds, for GPUs that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engine_models import write_model
from networks import randomize_norms

import prune2deploy as p2d
from prune2deploy.devices.local import LocalDevice
from prune2deploy.errors import DeviceError
from prune2deploy.export import export_onnx, fold_batchnorm
from prune2deploy.probe.cuda import load_cuda
from prune2deploy.probe.job import ASKS, COMMON, Refusal
from prune2deploy.probe.tensorrt_build import engine_for
from prune2deploy.probe.tensorrt_runtime import TensorRT, TensorRTRTX

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
RANGE = {"min": 1, "opt": 4, "max": 16}


def has_gpu() -> bool:
    try:
        load_cuda()
    except Refusal:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="is about a machine without a GPU")


def engine(path: Path, precision: str, *capabilities: str, **options: Any) -> dict[str, Any]:
    wanted = {"folder": str(path.parent / "engines"), "capabilities": list(capabilities)}
    model = {"name": path.stem, "path": str(path)}
    return engine_for(model, "tensorrt_rtx", {**wanted, "precision": precision, **options})


@pytest.mark.parametrize("capability", ["SM86", "SM89"])
@pytest.mark.parametrize("held", ["fp32", "fp16", "int8"])
def test_a_convolution_of_each_precision(held: str, capability: str, tmp_path: Path) -> None:
    record = engine(write_model(tmp_path / "m.onnx", held, channels=16), held, capability)
    assert record["route"] == ("plain" if held == "fp32" else "typed")
    assert record["flags"] == []
    assert record["fallback"] is None
    assert record["timing_cache"] is None
    assert record["facts"]["options"]["capabilities"] == [capability]
    assert Path(record["path"]).stat().st_size == record["size_bytes"] > 1000


@without_gpu
def test_what_cannot_be_known_without_a_gpu_is_said(tmp_path: Path) -> None:
    record = engine(write_model(tmp_path / "m.onnx", "fp16"), "fp16", "SM86")
    assert (record["inspected"], record["inspection"]) == (False, None)
    assert "no NVIDIA driver here" in record["inspected_reason"]
    assert record["facts"]["gpu"] is None
    assert record["facts"]["sm_count"] is None
    assert engine(tmp_path / "m.onnx", "fp16", "SM86")["reused"]


def test_targets_belong_to_the_key(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16")
    records = [engine(path, "fp16", *names) for names in ((), ("SM86",), ("SM86", "SM89"))]
    assert len({record["path"] for record in records}) == 3
    assert not any(record["reused"] for record in records)


def test_a_dynamic_batch(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp32", "N")
    assert engine(path, "fp32", "SM86", batch=RANGE)["size_bytes"] > 1000
    with pytest.raises(Refusal, match="Give a range of batch sizes"):
        engine(path, "fp32", "SM86")


def test_two_builds_are_alike(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16", channels=16)
    first, second = (
        engine(path, "fp16", "SM86", folder=str(tmp_path / name)) for name in ("a", "b")
    )
    assert not second["reused"]
    assert Path(first["path"]).read_bytes() == Path(second["path"]).read_bytes()


def test_an_unknown_operator_is_named_with_the_parsers_words(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp32", operator="Frobnicate")
    with pytest.raises(Refusal) as caught:
        engine(path, "fp32", "SM86")
    assert caught.value.facts["kind"] == "unsupported_operator"
    assert "parsing node number 1 [Frobnicate" in str(caught.value)
    assert "Plugin not found" in str(caught.value)


def test_what_it_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp32")
    for options, words in [
        ({"capabilities": ["SM87"]}, r"does not build for SM87; it knows .*SM86"),
        ({"dla": 0}, "has no DLA"),
        ({"precision": "fp16"}, "takes precisions from the file alone"),
    ]:
        with pytest.raises(Refusal, match=words):
            engine(path, **{"precision": "fp32", **options})


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    # Quantized with a zero point other than zero, which it does not take.
    path = write_model(tmp_path / "m.onnx", "int8")
    model = onnx.load(path)
    zero = next(t for t in model.graph.initializer if t.name == "zero")
    zero.raw_data = b"\x03"
    onnx.save(model, path)
    with pytest.raises(Refusal) as caught:
        engine(path, "int8", "SM86")
    assert caught.value.facts["kind"] in ("bad_model", "unsupported_operator", "build_failed")
    assert "zero" in str(caught.value).lower()


def ask(job: dict[str, Any]) -> Any:
    with LocalDevice() as device:
        return device.run_probe({"lock": None, **job}, time_limit_s=120, report=lambda line: None)


def test_the_packed_probe_builds(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16")
    job = {"ask": "build", "runtime": "tensorrt_rtx", "precision": "fp16"}
    job = {**job, "capabilities": ["SM89"], "folder": str(tmp_path / "engines")}
    job = {**job, "model": {"name": "small", "path": str(path)}}
    answer = ask(job)
    assert answer["versions"] == {"tensorrt_rtx": rtx.__version__}
    assert not answer["engine"]["reused"]
    assert ask(job)["engine"]["reused"]


@without_gpu
def test_a_measurement_without_a_gpu_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16")
    options = {"precision": "fp16", "folder": str(tmp_path / "engines")}
    job = {"runtime": "tensorrt_rtx", "engine": options}
    with pytest.raises(DeviceError, match="no GPU can be used here"):
        ask({**job, "models": [{"name": "small", "path": str(path)}]})
    assert list((tmp_path / "engines").glob("*.engine"))  # built by a process of its own


# Real networks.


def exported(name: str, path: Path, pruned: bool = False) -> Path:
    import torchvision

    torch.manual_seed(0)
    model = randomize_norms(getattr(torchvision.models, name)(weights=None)).eval()
    images = torch.randn(1, 3, 64, 64)
    if pruned:
        model = p2d.cut(model, p2d.plan(p2d.trace(model, images), budget={"params": 0.5}))
    folded = fold_batchnorm(model)
    return export_onnx(folded, path, input_shape=(3, 64, 64))


def halved(path: Path) -> Path:
    float16 = pytest.importorskip("onnxconverter_common.float16")
    model = float16.convert_float_to_float16(onnx.load(path))
    onnx.save(model, path.with_suffix(".fp16.onnx"))
    return path.with_suffix(".fp16.onnx")


def quantized(path: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            shape = (1, 3, 64, 64)
            self.left = [{"input": rng.standard_normal(shape, np.float32)} for _ in range(2)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    target = path.with_suffix(".int8.onnx")
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(path, target, Reader(), quant_format=QuantFormat.QDQ, extra_options=symmetric)
    return target


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_networks_of_each_precision(name: str, tmp_path: Path) -> None:
    path = exported(name, tmp_path / f"{name}.onnx")
    sizes = {}
    for precision, file in (("fp32", path), ("fp16", halved(path)), ("int8", quantized(path))):
        for capability in ("SM86", "SM89"):
            record = engine(file, precision, capability)
            sizes[precision] = record["size_bytes"]
    # No more of int8: of many small layers, its engine was seen to be larger than that of fp16.
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pruned_network_has_a_smaller_engine(tmp_path: Path) -> None:
    whole = exported("resnet18", tmp_path / "whole.onnx")
    pruned = exported("resnet18", tmp_path / "pruned.onnx", pruned=True)
    for convert, precision in ((lambda path: path, "fp32"), (halved, "fp16")):
        sizes = [
            engine(convert(path), precision, "SM86", "SM89")["size_bytes"]
            for path in (whole, pruned)
        ]
        assert sizes[1] < 0.9 * sizes[0]


# With a GPU.


def runtimes() -> list[type[TensorRT]]:
    import importlib.util

    kinds = (TensorRT, TensorRTRTX)
    return [kind for kind in kinds if importlib.util.find_spec(kind.NAME) is not None]


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
@pytest.mark.parametrize("held", ["fp32", "fp16", "int8"])
def test_an_engine_computes_what_onnx_runtime_does(held: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", held, channels=32)
    kind = "float16" if held == "fp16" else "float32"
    x = np.random.RandomState(0).standard_normal((1, 3, 16, 16)).astype(kind)
    expected = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    for runtime in runtimes():
        options = {"precision": held, "folder": str(tmp_path / "engines")}
        job = {**COMMON, **ASKS["measure"], "runtime": runtime.NAME, "engine": options}
        session = runtime({"name": "small", "path": str(path)}, job, None)
        session.open()
        session.run()
        session.outputs()
        (_, _, found) = session.results[0]
        tolerance = {"fp32": 1e-2, "fp16": 2e-2, "int8": 0.1}[held]  # TF32 in the first
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)
        assert session.check()["precision_share"] is not None
        assert min(session.device_times_ns(10)) > 0
        session.close()
