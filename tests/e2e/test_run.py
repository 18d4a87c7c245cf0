"""One small run on the digits, end to end, and what it leaves."""

import hashlib
import io
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import prune2deploy as p2d
from prune2deploy.models import load_model
from prune2deploy.pipeline import run_recipe
from prune2deploy.recipe import load_recipe, parse_recipe
from prune2deploy.report import Metrics, results_table

RECIPE = """
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 4, lr: 0.1, precision: fp32}
prune:
  method: METHOD
  budget: {macs: 0.5}
  TRAIN
finetune: {epochs: 2, lr: 0.05, precision: fp32, distill: {from: original}}
profile: {min_time_s: 0.2, retries: 0}
gates: {max_accuracy_drop: 30, max_size_mb: 0.001}
"""


def small_recipe(folder, method="chip", train=""):
    text = RECIPE.replace("METHOD", method).replace("TRAIN", train)
    return parse_recipe(text, folder / "small.yaml")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_recipe(small_recipe(folder), folder / "out")


def test_everything_named_is_there_and_hashes_match(result):
    metrics = Metrics.model_validate_json((result.folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert {
        "original.onnx",
        "pruned.onnx",
        "pruned.safetensors",
        "plan.json",
        "recipe.yaml",
    } <= set(metrics.files)
    for name, record in metrics.files.items():
        content = (result.folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == record.sha256, name
    assert not list(result.folder.glob("*.tmp"))
    assert "Stage: profile" in (result.folder / "run.log").read_text()


def test_the_budget_holds_in_the_file_itself(result):
    """Counted from the ONNX initializers, by code that knows nothing of channels."""

    def weights(name):
        graph = onnx.load(result.folder / name).graph
        return sum(int(np.prod(t.dims)) for t in graph.initializer if len(t.dims) > 1)

    metrics = result.metrics
    assert metrics.after.macs / metrics.before.macs == pytest.approx(0.5, rel=0.02)
    assert weights("pruned.onnx") < 0.65 * weights("original.onnx")
    assert metrics.after.onnx_bytes == (result.folder / "pruned.onnx").stat().st_size


def test_the_network_learned_and_kept_it(result):
    by_stage = {stage.stage: stage.metrics["top1"] for stage in result.metrics.stages}
    assert list(by_stage) == ["original", "cut", "finetuned"]
    assert by_stage["original"] > 90  # chance is 10
    assert by_stage["finetuned"] > 85


def test_the_onnx_file_answers_like_the_reported_accuracy(result):
    """Run by ONNX Runtime on the test images alone, without our evaluation."""
    from prune2deploy.data import open_data

    data = open_data("digits", input_shape=(1, 8, 8))
    session = onnxruntime.InferenceSession(
        result.folder / "pruned.onnx", providers=["CPUExecutionProvider"]
    )
    right = total = 0
    for images, targets in data.loader("test", batch_size=1):
        (scores,) = session.run(None, {"input": images.numpy()})
        right += int(scores.argmax() == targets.item())
        total += 1
    assert 100 * right / total == pytest.approx(result.metrics.after.metrics["top1"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == data.classes


def test_a_failed_gate_is_reported_and_nothing_is_lost(result):
    verdicts = {gate.name: gate.held for gate in result.gates}
    assert verdicts == {"max_accuracy_drop": True, "max_size_mb": False}
    assert not result.gates_held
    assert "**failed**" in (result.folder / "summary.md").read_text()


def test_the_page_of_the_run_is_there_and_says_the_same(result):
    page = (result.folder / "report.html").read_text()
    assert "1 of 2 gates failed: max_size_mb" in page
    faster = result.metrics.latency[0]["speedups"][0]
    assert f'">{faster["ratio"]:.2f}×</p>' in page
    assert "is not in the folder" not in page
    assert "is damaged" not in page
    assert "report.html" not in result.metrics.files


def test_the_speedup_has_an_interval_and_all_samples_are_kept(result):
    (measured,) = result.metrics.latency
    (faster,) = measured["speedups"]
    assert faster["low"] <= faster["ratio"] <= faster["high"]
    assert "latency/local.json" in result.metrics.files
    record = json.loads((result.folder / "latency" / "local.json").read_text())
    turns = record["answer"]["turns"]
    assert sum(len(t["samples_ns"]) for t in turns) == sum(
        one["samples"] for one in measured["latencies"]
    )


def test_the_pruned_model_comes_back_without_pickle(result, tmp_path):
    source = load_model("digits:convnet", {}, base_dir=tmp_path, num_classes=10, checkpoint=None)
    small = p2d.load_pruned(
        source, result.folder / "pruned.safetensors", result.folder / "plan.json"
    ).eval()
    session = onnxruntime.InferenceSession(
        result.folder / "pruned.onnx", providers=["CPUExecutionProvider"]
    )
    images = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (scores,) = session.run(None, {"input": images.numpy()})
    torch.testing.assert_close(small(images), torch.from_numpy(scores), rtol=1e-4, atol=1e-4)


def test_the_resolved_recipe_runs_again_to_the_same_networks(result, tmp_path):
    again = run_recipe(load_recipe(result.folder / "recipe.yaml"), tmp_path / "again")
    for name in ("original.onnx", "pruned.onnx", "plan.json"):
        assert again.metrics.files[name] == result.metrics.files[name], name


def test_the_table_names_every_figure(result):
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table(result.metrics))
    text = console.export_text()
    for word in (
        "accuracy (top-1)",
        "parameters",
        "MACs",
        "ONNX file",
        "latency on local",
        "faster",
        "FAILED",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("l1", "schedule: {kind: iterative, rounds: 2, finetune_epochs: 0.5}"),
        ("network_slimming", "train: {epochs: 2, lr: 0.05, precision: fp32}"),
        ("eagleeye", "candidates: 5\n  images: 256"),
        ("thinet", "images: 256"),
        (
            "ccprune",
            "train: {epochs: 2, lr: 0.05, precision: fp32}\n"
            "  schedule: {kind: iterative, rounds: 2, finetune_epochs: 0.5}",
        ),
    ],
)
def test_every_method_and_schedule_goes_through(method, train, tmp_path):
    done = run_recipe(small_recipe(tmp_path, method, train), tmp_path / "out")
    metrics = done.metrics
    assert metrics.after.macs / metrics.before.macs == pytest.approx(0.5, rel=0.02)
    assert metrics.after.metrics["top1"] > 80
    shutil.rmtree(done.folder)
