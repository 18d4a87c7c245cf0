"""fp16 and int8 through a whole run, and a budget of time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune2deploy.export.precision import precision_of
from prune2deploy.pipeline import RunResult, run_recipe, run_until
from prune2deploy.recipe import load_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"
SHORT = [
    "pretrain.epochs=4",
    "finetune.epochs=1",
    "prune.method=l1",
    "profile.min_time_s=0.2",
    "profile.retries=0",
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    overrides = [
        *SHORT,
        "export.precision=[fp32, fp16, int8]",
        "gates={max_accuracy_drop: 50, max_size_mb: 0.3}",
    ]
    recipe = load_recipe(QUICKSTART, overrides)
    return run_recipe(recipe, tmp_path_factory.mktemp("run") / "run")


def test_each_file_computes_as_it_says(result: RunResult) -> None:
    half, whole = (precision_of(result.folder / f"pruned.{name}.onnx") for name in ("fp16", "int8"))
    assert half["fp16"].layers > 0
    assert half["fp32"].layers == half["int8"].layers == 0
    assert whole["int8"].layers > 0
    assert whole["fp16"].layers == 0


def test_each_is_judged_on_the_test_images(result: RunResult) -> None:
    after = result.metrics.after.metrics["top1"]
    assert [one.precision for one in result.metrics.precisions] == ["fp16", "int8"]
    for one in result.metrics.precisions:
        assert abs(one.metrics["top1"] - after) < 3
        assert one.agreement is not None
        assert one.agreement > 0.95
        assert one.onnx_bytes < result.metrics.after.onnx_bytes
        assert one.file in result.metrics.files


def test_each_is_timed_in_turns_with_the_original(result: RunResult) -> None:
    (measured,) = result.metrics.latency
    names = [one["name"] for one in measured["latencies"]]
    assert names == ["original", "pruned", "pruned fp16", "pruned int8"]
    assert [one["other"] for one in measured["speedups"]] == names[1:]


def test_gates_look_at_the_last_one(result: RunResult) -> None:
    assert result.metrics.gated_precision == "int8"
    size = next(gate for gate in result.metrics.gates if gate.name == "max_size_mb")
    assert size.found == result.metrics.precisions[1].onnx_bytes / 1e6
    text = (result.folder / "summary.md").read_text()
    assert "int8: accuracy (top-1), %" in text


def test_int8_can_be_trained_for(tmp_path: Path) -> None:
    recipe = load_recipe(
        QUICKSTART,
        [
            *SHORT,
            "export.precision=int8",
            "export.int8.finetune={epochs: 1, lr: 0.001}",
            "export.int8.finetune_when=always",
            "gates={}",
        ],
    )
    folder = run_until(recipe, "precisions", tmp_path / "run")
    record = json.loads((folder / "stages" / "precisions.json").read_text())
    (int8,) = record["result"]["precisions"]
    assert int8["layers"]["fp32"] == 0
    assert int8["without_training"]["top1"] > 80
    assert int8["metrics"]["top1"] > 80
    assert "Fine-tuning for int8: epoch 1" in (folder / "run.log").read_text()
    assert precision_of(folder / "pruned.int8.onnx")["int8"].layers > 0


def test_a_training_for_int8_that_harms_is_not_used(tmp_path: Path) -> None:
    recipe = load_recipe(
        QUICKSTART,
        [
            *SHORT,
            "export.precision=int8",
            "export.int8.finetune={epochs: 0.5, lr: 3.0, warmup_epochs: 0, grad_clip: 1.0}",
            "export.int8.finetune_when=always",
            "gates={}",
        ],
    )
    folder = run_until(recipe, "precisions", tmp_path / "run")
    record = json.loads((folder / "stages" / "precisions.json").read_text())
    (int8,) = record["result"]["precisions"]
    assert int8["without_training"] is None
    assert int8["metrics"]["top1"] > 80
    assert "Training for int8 made it worse" in (folder / "run.log").read_text()


@pytest.mark.slow  # a minute or two: it measures layers in many widths
def test_a_budget_of_time_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = load_recipe(QUICKSTART, [*SHORT, "prune.budget={speedup: 1.1}", "gates={}"])
    result = run_recipe(recipe, tmp_path / "run")
    (note,) = (one for one in result.metrics.pruning.notes if one.startswith("Time on local"))
    assert "after" in note
    assert result.metrics.after.macs < result.metrics.before.macs
    (table,) = (tmp_path / "cache/prune2deploy/staircases").glob("*.json")
    content = json.loads(table.read_text())
    assert content["conditions"]["runtime"] == "onnxruntime"
    assert any(key.startswith("conv 3x3 on 8x8") for key in content["layers"])
