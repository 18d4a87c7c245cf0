"""Engines in a run: built, compared, gated; with a stand-in for the device's TensorRT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from prune2deploy.errors import DeviceError, ExportError
from prune2deploy.export.precision import precision_of
from prune2deploy.latency import engines as latency_engines
from prune2deploy.pipeline import engines, run_recipe, run_until
from prune2deploy.recipe import parse_recipe

RECIPE = """
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 2, lr: 0.1, precision: fp32}
prune: {method: l1, budget: {macs: 0.5}}
export:
  precision: [fp32, fp16]
  engines: {on: [orin], min_share: 0.75}
profile: {min_time_s: 0.05, retries: 0}
"""
DEVICES = """
devices:
  orin: {kind: local, runtime: RUNTIME}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.yaml").write_text(DEVICES.replace("RUNTIME", "tensorrt"))
    return tmp_path


class Board:
    """A board that builds: what it was asked for, and how far off its answers are."""

    def __init__(self, noise: float = 0.0, error: DeviceError | None = None) -> None:
        self.built: list[tuple[str, Any]] = []
        self.noise, self.error = noise, error

    def build(
        self, model: Path, *, device: str, options: Any, output: Path, devices: Any
    ) -> latency_engines.Engine:
        self.built.append((model.name, options))
        output.mkdir(parents=True, exist_ok=True)
        copy = output / f"{model.stem}.engine"
        copy.write_bytes(b"engine of " + model.read_bytes()[:64])
        copy.with_suffix(".engine.json").write_text("{}")
        precision = latency_engines.file_precision(model)
        built = {"runtime": "tensorrt", "version": "10.3.0", "gpu": "Orin", "precision": precision}
        facts = {"facts": built, "inspected": True, "inspection": {"share": 0.9}, "warnings": []}
        return latency_engines.Engine(device, str(copy), copy, facts)

    def answer(self, model: Path, inputs: Any, **others: Any) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        session = onnxruntime.InferenceSession(model)
        given = [session.run(None, {session.get_inputs()[0].name: x[None]})[0] for x in inputs[0]]
        answers = np.concatenate(given)
        return {session.get_outputs()[0].name: answers + self.noise * np.abs(answers).max()}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "build_engine", self.build)
        monkeypatch.setattr(engines, "outputs_on", self.answer)


def test_engines_of_all_precisions_are_built_and_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    board.install(monkeypatch)
    recipe = parse_recipe(RECIPE + "gates: {max_accuracy_drop: 90}\n", folder / "r.yaml")
    result = run_recipe(recipe, folder / "run")
    assert [name for name, _ in board.built] == ["pruned.onnx", "pruned.fp16.onnx"]
    assert {options.min_share for _, options in board.built} == {0.75}
    first, second = result.metrics.engines
    assert (first.precision, second.precision) == ("fp32", "fp16")
    assert first.file == "engines/orin/pruned.engine"
    assert first.file in result.metrics.files
    assert (first.agreement, first.share, first.samples) == (1.0, 0.9, 256)
    assert first.max_rel_difference == pytest.approx(0, abs=1e-6)
    assert first.agreement_with_torch is not None
    assert first.agreement_with_torch > 0.99
    (gate,) = (gate for gate in result.gates if gate.name == "engines_agree")
    assert (gate.held, gate.found) == (True, 1.0)


def test_an_engine_that_answers_otherwise_fails_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Board(noise=0.01).install(monkeypatch)
    recipe = parse_recipe(RECIPE, folder / "r.yaml")
    with pytest.raises(ExportError, match=r"pruned\.engine on orin .* differ by 0\.01 .* 0\.001"):
        run_until(recipe, "engines", folder / "run")
    assert (folder / "run/engines/orin/pruned.engine").exists()
    wider = RECIPE.replace("min_share: 0.75", "tolerance: {fp32: 0.1, fp16: 0.1}")
    run_until(parse_recipe(wider, folder / "r.yaml"), "engines", folder / "wider")


def test_an_engine_that_nobody_can_run_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Board(error=DeviceError("no GPU here", "no_gpu")).install(monkeypatch)
    result = run_recipe(parse_recipe(RECIPE, folder / "r.yaml"), folder / "run")
    assert {one.not_judged for one in result.metrics.engines} == {"no GPU here"}
    (gate,) = result.gates
    assert (gate.name, gate.held, gate.found) == ("engines_agree", False, None)
    assert "no GPU here" in str(gate.note)
    assert "no GPU here" in (folder / "run/summary.md").read_text()


def test_other_trouble_with_the_device_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Board(error=DeviceError("the board is on fire")).install(monkeypatch)
    with pytest.raises(DeviceError, match="on fire"):
        run_until(parse_recipe(RECIPE, folder / "r.yaml"), "engines", folder / "run")


def test_int8_with_the_rest_in_fp16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    board.install(monkeypatch)
    text = RECIPE.replace("[fp32, fp16]", "int8\n  int8: {rest: fp16, allowed_drop: null}")
    with pytest.raises(ExportError, match="rest: fp16 is for TensorRT, and no device"):
        run_until(parse_recipe(text, folder / "r.yaml"), "precisions", folder / "cpu")
    text = text.replace("profile: {", "profile: {on: [orin], ")
    run_until(parse_recipe(text, folder / "r.yaml"), "precisions", folder / "run")
    counts = precision_of(folder / "run/pruned.int8.onnx")
    assert counts["int8"].layers > 0
    assert counts["fp32"].layers == 0
    # What is no layer computes in fp16, too.
    proto = onnx.load(folder / "run/pruned.int8.onnx")
    kinds = {tensor.data_type for tensor in proto.graph.initializer if "scale" in tensor.name}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_without_such_a_device_there_is_no_such_stage(folder: Path) -> None:
    recipe = parse_recipe(RECIPE.replace("on: [orin], ", ""), folder / "r.yaml")
    result = run_recipe(recipe, folder / "run")
    assert result.metrics.engines == []
    assert not (folder / "run/stages/engines.json").exists()


def test_tensorrt_for_rtx_builds_for_real(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("HOME", str(folder))
    (folder / "devices.yaml").write_text(DEVICES.replace("RUNTIME", "tensorrt_rtx"))
    run_until(parse_recipe(RECIPE, folder / "r.yaml"), "engines", folder / "run")
    record = json.loads((folder / "run/stages/engines.json").read_text())
    first, second = record["result"]["engines"]
    assert (first["precision"], second["precision"]) == ("fp32", "fp16")
    assert first["bytes"] == (folder / "run" / first["file"]).stat().st_size
    assert first["not_judged"] is None or "GPU" in first["not_judged"]
