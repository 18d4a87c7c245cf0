"""Engines on stand-ins for TensorRT 8.5 to 11: what is set, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from building import Install, engine, refusal
from engine_models import write_model
from tensorrt_names import SINCE, VERSIONS, has

from prune2deploy.probe import tensorrt_build
from prune2deploy.probe.job import ASKS, COMMON, Refusal
from prune2deploy.probe.tensorrt_build import build

RANGE = {"min": 1, "opt": 2, "max": 4}


# What each version must be told, per (precision asked, precision in the file): the network's
# flags, and the builder's beside TF32, which is on unless somebody turns it off.
EXPECTED: dict[str, dict[tuple[str, str], tuple[list[str], list[str]] | None]] = {
    "8.5.3.1": {
        ("fp32", "fp32"): (["EXPLICIT_BATCH"], []),
        ("fp16", "fp32"): (["EXPLICIT_BATCH"], ["FP16"]),
        ("fp16", "fp16"): (["EXPLICIT_BATCH"], ["FP16"]),
        ("int8", "int8"): (["EXPLICIT_BATCH"], ["INT8"]),
    },
    "10.3.0.26": {
        ("fp32", "fp32"): ([], []),
        ("fp16", "fp32"): ([], ["FP16"]),
        ("fp16", "fp16"): (["STRONGLY_TYPED"], []),
        ("int8", "int8"): ([], ["INT8"]),
    },
    "11.1.0.2": {
        ("fp32", "fp32"): ([], []),
        ("fp16", "fp32"): None,
        ("fp16", "fp16"): (["STRONGLY_TYPED"], []),
        ("int8", "int8"): (["STRONGLY_TYPED"], []),
    },
}
EXPECTED["8.6.1.6"] = EXPECTED["8.5.3.1"]
EXPECTED["10.16.1.11"] = EXPECTED["10.3.0.26"]


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize(("asked", "held"), list(EXPECTED["8.5.3.1"]))
@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_told_what_it_needs(
    version: str, asked: str, held: str, batch: int | str, install: Install, tmp_path: Path
) -> None:
    trt, _ = install(version)
    path = write_model(tmp_path / "m.onnx", held, batch)
    options = {"batch": None if batch == 1 else RANGE, "workspace_mb": 64}
    expected = EXPECTED[version][asked, held]
    if expected is None:
        kind, text = refusal(path, asked, **options)
        assert kind == "not_as_asked"
        assert "takes precisions from the file alone" in text
        assert trt.done == {}
        return
    record = engine(path, asked, **options)
    network, flags = expected
    assert trt.done["network"] == network
    assert trt.done["flags"] == sorted([*flags, "TF32"])
    assert trt.done["workspace"] == 64 << 20
    assert record["flags"] == flags
    assert record["inspected"]
    assert record["inspection"]["computing"] == {"total": 1, "asked": 1, "share": 1.0}
    assert record["inspection"]["inputs_outputs"] == ["x", "y"]
    profiles = trt.done["config"]._profiles
    shapes = tuple((size, 3, 16, 16) for size in (1, 2, 4))
    assert profiles == ([] if batch == 1 else [{"x": shapes}])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_ins_have_no_name_that_their_version_lacks(
    version: str, install: Install, tmp_path: Path
) -> None:
    trt, _ = install(version)
    builder = trt.Builder(trt.ILogger())
    objects = {
        "Builder": builder,
        "Config": builder.create_builder_config(),
        "BuilderFlag": trt.BuilderFlag,
        "NetworkDefinitionCreationFlag": trt.NetworkDefinitionCreationFlag,
    }
    missing = [name for name in SINCE if not has(trt._version, name)]
    assert missing
    tried = 0
    for owner, _, name in (entry.partition(".") for entry in missing):
        if owner in objects:
            tried += 1
            with pytest.raises(AttributeError):
                getattr(objects[owner], name)
    assert tried
    with pytest.raises(AttributeError):
        builder.create_builder_config().never_heard_of = 1


def test_a_typed_engine_falls_back_to_flags_where_typing_is_young(
    install: Install, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16")
    trt, _ = install("10.3.0.26")
    trt.refuses = lambda typed: "no kernel for a typed convolution" if typed else None
    record = engine(path, "fp16")
    assert (record["route"], record["flags"]) == ("flags", ["FP16"])
    assert "no kernel for a typed convolution" in record["fallback"]
    trt, _ = install("10.16.1.11")
    trt.refuses = lambda typed: "no kernel for a typed convolution" if typed else None
    assert refusal(path, "fp16")[0] == "build_failed"


@pytest.mark.parametrize("version", ["8.6.1.6", "10.16.1.11"])
def test_an_engine_in_another_precision_is_refused(
    version: str, install: Install, tmp_path: Path
) -> None:
    trt, _ = install(version)
    trt.ignores_flags = True
    path = write_model(tmp_path / "m.onnx", "fp32")
    kind, text = refusal(path, "fp16")
    assert kind == "not_as_asked"
    assert "0 of 1 convolutions" in text
    assert "conv + act (fp32)" in text
    # It is not built a second time to find that out again.
    trt.done.clear()
    assert refusal(path, "fp16") == (kind, text)
    assert trt.done == {}
    assert engine(path, "fp16", min_share=0)["reused"]


def test_fp16_by_flags_is_refused_where_nothing_shows_it(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("8.6.1.6")

    def blind(text: str, precision: str) -> dict[str, Any]:
        raise ValueError("the inspector gave no details of layers")

    monkeypatch.setattr(tensorrt_build, "inspection", blind)
    path = write_model(tmp_path / "m.onnx", "fp32")
    assert "nothing shows whether" in refusal(path, "fp16")[1]
    assert engine(path, "fp32")["inspected_reason"] == "the inspector gave no details of layers"


@pytest.mark.parametrize(
    ("asked", "held", "advice"),
    [
        ("fp32", "fp16", "Give the fp32 file"),
        ("fp32", "int8", "Give the fp32 file"),
        ("int8", "fp32", "QuantizeLinear"),
        ("fp16", "int8", "ask for what the file holds"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_another_precision_is_refused(
    version: str, asked: str, held: str, advice: str, install: Install, tmp_path: Path
) -> None:
    install(version)
    kind, text = refusal(write_model(tmp_path / "m.onnx", held), asked)
    assert kind == "not_as_asked"
    assert f"{asked} was asked for, the ONNX file holds {held}" in text
    assert advice in text


def test_what_a_version_does_not_have_is_refused(install: Install, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp16")
    install("8.5.3.1")
    assert "came with 8.6" in refusal(path, "fp16", optimization_level=5)[1]
    assert "capabilities are for" in refusal(path, "fp16", capabilities=["SM86"])[1]
    install("11.1.0.2")
    assert "has no DLA" in refusal(path, "fp16", dla=0)[1]
    install("8.4.1.5")
    kind, text = refusal(path, "fp16")
    assert kind == "no_runtime"
    assert "8.4.1.5 is too old; expected 8.5" in text


def test_options_reach_the_builder(install: Install, tmp_path: Path) -> None:
    trt, _ = install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp16")
    record = engine(path, "fp16", dla=1, sparse=True, optimization_level=4)
    config = trt.done["config"]
    assert record["flags"] == ["FP16", "SPARSE_WEIGHTS", "GPU_FALLBACK"]
    assert record["route"] == "flags"  # the DLA takes no typed network
    assert (config.DLA_core, config.default_device_type.name) == (1, "DLA")
    assert config.builder_optimization_level == 4
    assert "DLA core 2" in refusal(path, "fp16", dla=2)[1]
    assert "fp16 and int8" in refusal(write_model(tmp_path / "f.onnx", "fp32"), dla=0)[1]


def test_tensorrt_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    kind, text = refusal(write_model(tmp_path / "m.onnx", "fp32"))
    assert kind == "no_runtime"
    assert "--system-site-packages" in text
    assert "pip install tensorrt" in text


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_operator_is_named(version: str, install: Install, tmp_path: Path) -> None:
    install(version)
    path = write_model(tmp_path / "m.onnx", "fp32", operator="Frobnicate")
    kind, text = refusal(path)
    assert kind == "unsupported_operator"
    assert 'parsing node number 1 [Frobnicate -> "r"]' in text
    assert "No importer registered" in text


def test_a_file_that_is_not_onnx(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    whole = write_model(tmp_path / "m.onnx", "fp32").read_bytes()
    for content in (b"hello there, this is text", b"", whole[: len(whole) // 2]):
        (tmp_path / "bad.onnx").write_bytes(content)
        assert refusal(tmp_path / "bad.onnx")[0] == "not_onnx"
    assert refusal(tmp_path / "none.onnx")[0] == "missing"


@pytest.mark.parametrize(
    ("batch", "sizes", "kind", "text"),
    [
        ("N", None, "dynamic_shape", "Give a range of batch sizes"),
        (1, RANGE, "not_as_asked", "is fixed to"),
        ("N", {"min": 4, "opt": 2, "max": 8}, "bad_job", "rising"),
        ("N", {"min": 1, "max": 8}, "bad_job", "expected"),
        ("N", {"min": 0, "opt": 1, "max": 8}, "bad_job", "above 0"),
    ],
)
def test_batches_that_cannot_be(
    batch: int | str, sizes: Any, kind: str, text: str, install: Install, tmp_path: Path
) -> None:
    install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32", batch)
    found = refusal(path, batch=sizes)
    assert found[0] == kind
    assert text in found[1]


def test_a_fixed_batch_may_be_named(install: Install, tmp_path: Path) -> None:
    trt, _ = install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32", 2)
    engine(path, batch={"min": 2, "opt": 2, "max": 2})
    assert trt.done["config"]._profiles == []


def test_a_folder_that_cannot_be_written(install: Install, tmp_path: Path) -> None:
    trt, _ = install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32")
    (tmp_path / "file").write_text("")
    kind, text = refusal(path, folder=str(tmp_path / "file" / "engines"))
    assert kind == "cannot_write"
    assert "Choose another" in text
    assert trt.done == {}  # not after minutes of building


def test_the_job_build(install: Install, tmp_path: Path) -> None:
    install("10.3.0.26")
    job = {**COMMON, **ASKS["build"], "ask": "build", "lock": None}
    job["folder"] = str(tmp_path / "engines")
    path = write_model(tmp_path / "m.onnx", "fp32")
    answer = build({**job, "model": {"name": "small", "path": str(path)}})
    assert answer["versions"] == {"tensorrt": "10.3.0.26"}
    assert answer["engine"]["facts"]["gpu"] == "Orin"
    json.dumps(answer)
    with pytest.raises(Refusal, match="a build needs"):
        build(job)
    with pytest.raises(Refusal, match="no TensorRT is called 'trt'"):
        build({**job, "model": {"name": "small", "path": str(path)}, "runtime": "trt"})
