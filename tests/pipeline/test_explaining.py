"""The folder of a run: what is missing, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import QUICK, save

from prune2deploy.devices import LocalSettings
from prune2deploy.errors import DeviceError, RecipeError
from prune2deploy.latency import ProfileOptions, ResultFolder, profile_devices
from prune2deploy.latency.explain import Explanation, explain
from prune2deploy.pipeline import explaining
from prune2deploy.pipeline.explaining import explain_run

OPTIONS = ProfileOptions(**QUICK, threads=1, time_limit_s=60)
DEVICES = {"local": LocalSettings()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it, as far as it is looked at."""
    for name, width in (("original", 16), ("pruned", 8)):
        weights = [
            numpy_helper.from_array(np.ones((width, 3, 3, 3), np.float32), "a.weight"),
            numpy_helper.from_array(np.ones((8, width, 3, 3), np.float32), "b.weight"),
        ]
        nodes = [
            helper.make_node("Conv", ["x", "a.weight"], ["h"]),
            helper.make_node("Conv", ["h", "b.weight"], ["y"]),
        ]
        save(tmp_path / f"{name}.onnx", nodes, [1, 3, 16, 16], weights, TensorProto.FLOAT)
    (tmp_path / "metrics.json").write_text("{}")
    return tmp_path


def measure(run: Path) -> None:
    models = {name: run / f"{name}.onnx" for name in ("original", "pruned")}
    profile_devices(models, ["local"], options=OPTIONS, devices=DEVICES, folder=ResultFolder(run))


def test_the_measurement_of_the_run_is_what_is_explained(run: Path) -> None:
    measure(run)
    explanation = explain_run(run, options=OPTIONS, devices=DEVICES)
    assert explanation.device == "local"
    assert explanation.pruned_ms == pytest.approx(explanation.original_ms / explanation.measured)
    assert explanation.promised == pytest.approx(2.0, rel=0.01)
    assert "has no measurement" not in " ".join(explanation.notes)


def test_without_a_measurement_the_profile_is_taken_and_said_so(run: Path) -> None:
    explanation = explain_run(run, options=OPTIONS, devices=DEVICES)
    assert "The run has no measurement on local" in " ".join(explanation.notes)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no folder of a finished run: it has no metrics.json"):
        explain_run(tmp_path)


def test_several_devices_are_a_choice(run: Path) -> None:
    (run / "latency").mkdir()
    for name in ("pi", "orin"):
        (run / "latency" / f"{name}.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"measured on orin, pi. Choose one with --on"):
        explain_run(run)


def test_an_unknown_device(run: Path) -> None:
    with pytest.raises(DeviceError, match="No device is named 'pi9'"):
        explain_run(run, "pi9", options=OPTIONS, devices=DEVICES)


def test_a_damaged_result_and_one_of_other_files(run: Path) -> None:
    (run / "latency").mkdir()
    kept = run / "latency" / "local.json"
    kept.write_text("{")
    with pytest.raises(RecipeError, match="is damaged, or no result"):
        explain_run(run, devices=DEVICES)
    kept.unlink()
    measure(run)
    model = onnx.load(run / "pruned.onnx")
    model.doc_string = "another"
    onnx.save(model, run / "pruned.onnx")
    with pytest.raises(RecipeError, match="was measured with other files than those"):
        explain_run(run, devices=DEVICES)


def test_of_a_run_with_lower_precisions_the_two_in_fp32_are_explained(run: Path) -> None:
    # As a run with export.precision leaves it: four files in one measurement.
    for name in ("fp16", "int8"):
        (run / f"pruned-{name}.onnx").write_bytes((run / "pruned.onnx").read_bytes())
    models = {name: run / f"{name}.onnx" for name in ("original", "pruned")}
    models |= {f"pruned {name}": run / f"pruned-{name}.onnx" for name in ("fp16", "int8")}
    profile_devices(models, ["local"], options=OPTIONS, devices=DEVICES, folder=ResultFolder(run))
    kept = json.loads((run / "latency" / "local.json").read_text())
    assert [one["name"] for one in kept["answer"]["models"]] == list(models)
    # The pruned one and those behind it are told apart.
    for turn in kept["answer"]["turns"]:
        factor = {0: 10, 1: 4}.get(turn["model"], 1)
        turn["samples_ns"] = [factor * 1_000_000 for _ in turn["samples_ns"]]
    (run / "latency" / "local.json").write_text(json.dumps(kept))
    explanation = explain_run(run, options=OPTIONS, devices=DEVICES)
    assert explanation.original_ms == pytest.approx(10)
    assert explanation.measured == pytest.approx(2.5)
    assert "has no measurement" not in " ".join(explanation.notes)


@pytest.mark.parametrize(
    ("budget", "timed"), [("{speedup: 2}", True), ("{macs: 0.5}", False), ("{mcas: 0.5}", False)]
)
def test_a_run_with_a_budget_of_time_is_not_advised_to_have_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, budget: str, timed: bool
) -> None:
    # Recipes of other versions, which this one cannot read, are explained as well.
    (run / "recipe.yaml").write_text(
        "model: {source: 'cifar:resnet20', input: [3, 32, 32]}\n"
        "data: {source: digits}\n"
        "pretrain: {epochs: 1, lr: 0.1}\n"
        f"prune: {{method: l1, budget: {budget}}}\n"
    )
    told: list[bool] = []

    def told_only(*arguments: Any, timed: bool) -> Explanation:
        told.append(timed)
        return explain(*arguments, timed=timed)

    monkeypatch.setattr(explaining, "explain", told_only)
    explain_run(run, options=OPTIONS, devices=DEVICES)
    assert told == [timed]
