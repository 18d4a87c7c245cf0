"""TensorRT as a runtime of the probe, on stand-ins for each version and for the GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from building import Install
from engine_models import write_model
from tensorrt_names import VERSIONS

from prune2deploy.probe.job import ASKS, COMMON, Refusal
from prune2deploy.probe.runtimes import RUNTIMES
from prune2deploy.probe.tensorrt_build import engine_for
from prune2deploy.probe.tensorrt_runtime import TensorRT, TensorRTRTX, layer_times

DEFAULTS = {**COMMON, **ASKS["measure"], "runtime": "tensorrt"}


def session(path: Path, precision: str = "fp32", **settings: Any) -> TensorRT:
    options = {"folder": str(path.parent / "engines"), "precision": precision}
    options.update(settings.pop("options", {}))
    job = {**DEFAULTS, "engine": options, **settings}
    return TensorRT({"name": "small", "path": str(path)}, job, None)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("held", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_it_computes_what_onnx_runtime_does(
    version: str, held: str, batch: int | None, install: Install, tmp_path: Path
) -> None:
    _, cuda = install(version)
    path = write_model(tmp_path / "m.onnx", held, 1 if batch is None else "N")
    sizes = None if batch is None else {"min": 1, "opt": 2, "max": 4}
    runtime = session(path, held, seed=5, batch=batch, options={"batch": sizes})
    runtime.open()
    runtime.run()
    kind = "float16" if held == "fp16" else "float32"
    shape = [batch or 1, 3, 16, 16]
    assert runtime.inputs == [{"name": "x", "dtype": kind, "shape": shape}]
    x = np.random.RandomState(5).standard_normal(shape).astype(kind)
    expected = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    (fact,) = runtime.outputs()
    assert (fact["name"], fact["dtype"], fact["shape"]) == ("y", kind, [batch or 1, 8, 1, 1])
    assert fact["mean"] == pytest.approx(expected.astype(float).mean(), rel=1e-6)
    runtime.close()
    assert not cuda._memory
    assert not cuda._streams


def test_what_it_says_of_itself(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    runtime = session(write_model(tmp_path / "m.onnx", "fp16"), "fp16")
    assert runtime.versions() == {"tensorrt": "10.3.0.26", "numpy": np.__version__}
    runtime.open()
    runtime.run()
    found = runtime.check()
    assert found["device"]["gpu"] == "Orin"
    assert (found["precision"], found["precision_share"]) == ("fp16", 1.0)
    assert (found["threads"], found["spinning"], found["runtime_cache"]) == (1, True, None)
    assert found["engine"]["route"] == "typed"
    assert runtime.device_times_ns(3) == [1, 1, 1]
    assert layer_times(runtime, 2) == [
        {"name": "conv", "samples_ns": [250_000, 250_000]},
        {"name": "pool", "samples_ns": [125_000, 125_000]},
    ]


def test_the_way_of_waiting_is_set_and_checked(install: Install, tmp_path: Path) -> None:
    _, cuda = install("10.3.0.26")
    runtime = session(write_model(tmp_path / "m.onnx", "fp32"), spinning=False)
    runtime.open()
    assert runtime.check()["spinning"] is False
    cuda.schedule(True)
    with pytest.raises(Refusal, match="spinning: asked False, got True"):
        runtime.check()


def test_what_it_cannot_do_is_refused(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32", "N")
    sizes = {"batch": {"min": 1, "opt": 2, "max": 4}}
    for settings, text in [
        ({"threads": 2}, "2 threads were asked for"),
        ({"engine": None}, 'needs "engine"'),
        ({"options": {"speed": 11}}, "unknown options of an engine: speed"),
        ({"options": sizes, "batch": 5}, "takes no input 'x' of shape"),
        ({"options": sizes}, "Give a batch size"),
    ]:
        with pytest.raises(Refusal, match=text):
            session(path, **settings).open()


def test_an_engine_of_another_version_is_put_into_words(install: Install, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp32")
    install("10.3.0.26")
    options = {"folder": str(tmp_path / "engines")}
    plan = engine_for({"name": "small", "path": str(path)}, "tensorrt", options)
    install("10.16.1.11")
    runtime = TensorRT({"name": "small", "path": str(path), "plan": plan}, DEFAULTS, None)
    with pytest.raises(Refusal, match=r"built by TensorRT 10\.3\.0\.26 and this is 10\.16\.1\.11"):
        runtime.open()
    Path(plan["path"]).unlink()
    with pytest.raises(Refusal, match="is gone"):
        runtime.open()


def test_a_run_that_fails_is_not_a_fast_run(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    runtime = session(write_model(tmp_path / "m.onnx", "fp32"))
    runtime.open()
    runtime.context._addresses.clear()
    with pytest.raises(Refusal, match="did not run"):
        runtime.run()
    with pytest.raises(Refusal, match="did not run"):
        runtime.device_times_ns(1)


def test_a_type_that_numpy_lacks(install: Install, tmp_path: Path) -> None:
    trt, _ = install("10.3.0.26")
    runtime = session(write_model(tmp_path / "m.onnx", "fp16"), "fp16")
    trt.DataType.HALF._name_ = "BF16"
    with pytest.raises(Refusal, match="type BF16"):
        runtime.open()


def test_a_model_has_its_own_options_or_those_of_the_job(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    paths = {held: write_model(tmp_path / f"{held}.onnx", held) for held in ("fp32", "fp16")}
    job = {**DEFAULTS, "engine": {"folder": str(tmp_path / "e"), "precision": "fp32"}}
    model: dict[str, Any] = {"name": "half", "path": str(paths["fp16"])}
    model["engine"] = {"folder": str(tmp_path / "e"), "precision": "fp16"}
    half = TensorRT(model, job, None)
    half.open()
    assert half.check()["precision"] == "fp16"
    single = TensorRT({"name": "single", "path": str(paths["fp32"])}, job, None)
    single.open()
    assert single.check()["precision"] == "fp32"


def test_both_kinds_are_in_the_table() -> None:
    assert {name: kind.NAME for name, kind in RUNTIMES.items() if hasattr(kind, "NAME")} == {
        "tensorrt": "tensorrt",
        "tensorrt_rtx": "tensorrt_rtx",
    }


class FakeKernels:
    """A runtime cache of TensorRT-RTX: it takes back only what this GPU wrote."""

    def deserialize(self, content: bytes) -> bool:
        return content == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class FakeRtxEngine:
    def __init__(self) -> None:
        self.used: Any = None

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            create_runtime_cache=FakeKernels, set_runtime_cache=lambda cache: True
        )

    def create_execution_context(self, config: Any) -> Any:
        self.used = config
        return "context"


def rtx_session(folder: Path) -> TensorRTRTX:
    runtime = TensorRTRTX({"name": "small", "path": "m.onnx"}, DEFAULTS, None)
    runtime.trt = ModuleType("tensorrt_rtx")
    runtime.engine = FakeRtxEngine()
    runtime.plan = {"path": str(folder / "key.engine")}
    return runtime


def test_compiled_kernels_of_rtx_are_kept(tmp_path: Path) -> None:
    for content, expected in [(None, "new"), (None, "used"), (b"of another GPU", "refused")]:
        if content:
            (tmp_path / "key.kernels").write_bytes(content)
        runtime = rtx_session(tmp_path)
        assert runtime._context() == "context"
        assert runtime.runtime_cache == expected
        runtime._keep_kernels()
        assert (tmp_path / "key.kernels").read_bytes() == b"kernels"


def test_rtx_says_why_an_engine_is_not_valid(tmp_path: Path) -> None:
    runtime = rtx_session(tmp_path)
    members = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
    runtime.trt.EngineInvalidityDiagnostics = SimpleNamespace(__members__=members)
    seen: list[bytes] = []

    def validity(header: bytes) -> tuple[str, int]:
        seen.append(header)
        return "EngineValidity.INVALID", 6

    runtime.library = SimpleNamespace(engine_header_size=4, get_engine_validity=validity)
    assert runtime._validity(b"header and more") == " (INVALID: UNSUPPORTED_CC, OLD_CUDA_DRIVER)"
    assert seen == [b"head"]


def test_the_real_rtx_has_the_names_that_are_used_of_it() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for owner, names in {
        rtx.ICudaEngine: "create_runtime_config create_execution_context num_io_tensors "
        "get_tensor_name get_tensor_mode get_tensor_shape get_tensor_dtype "
        "create_engine_inspector",
        rtx.IRuntimeConfig: "create_runtime_cache set_runtime_cache",
        rtx.IRuntimeCache: "serialize deserialize",
        rtx.Runtime: "engine_header_size get_engine_validity deserialize_cuda_engine",
        rtx.IExecutionContext: "set_input_shape get_tensor_shape set_tensor_address "
        "execute_async_v3 profiler",
        rtx.EngineInspector: "execution_context get_engine_information",
        rtx: "IProfiler ILogger TensorIOMode LayerInformationFormat EngineInvalidityDiagnostics",
    }.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []
