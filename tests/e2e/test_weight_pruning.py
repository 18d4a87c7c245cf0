"""Runs that zero single weights, on the digits: zeros are in the file, and the report says so."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

import prune2deploy as p2d
from prune2deploy.errors import BudgetError, MethodError, ModelError
from prune2deploy.models import load_model
from prune2deploy.pipeline import check_recipe, run_recipe
from prune2deploy.recipe import load_recipe, parse_recipe
from prune2deploy.report import Metrics, check_table, results_table

RECIPE = """
model: {source: "digits:convnet", args: {widths: [16, 32]}, input: [1, 8, 8]}
data: {source: digits, normalize: none, batch_size: 32}
pretrain: {epochs: 4, lr: 0.1, precision: fp32}
prune: PRUNE
finetune: {epochs: 2, lr: 0.05, precision: fp32, weight_decay: 0.001}
profile: {min_time_s: 0.05, retries: 0}
"""
TOTAL = 144 + 4608 + 320  # two convolutions and the classifier


def run(folder, prune):
    recipe = parse_recipe(RECIPE.replace("PRUNE", prune), folder / "small.yaml")
    return run_recipe(recipe, folder / "out")


def initializers(folder, name="pruned.onnx"):
    """Weights of the ONNX file by shape; only layers have more than one dimension."""
    tensors = map(numpy_helper.to_array, onnx.load(folder / name).graph.initializer)
    return {tensor.shape: tensor for tensor in tensors if tensor.ndim > 1}


def reported(metrics):
    return {layer.layer: (layer.weights, layer.kept) for layer in metrics.pruning.weights}


def shown(table):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def han(tmp_path_factory):
    prune = "{method: han, budget: {weights: 0.2}, schedule: {kind: iterative, rounds: 2}}"
    return run(tmp_path_factory.mktemp("han"), prune)


def test_the_share_holds_in_the_file_itself(han):
    """Batch norms are folded into these weights, and zeros are zeros still."""
    before, after = initializers(han.folder, "original.onnx"), initializers(han.folder)
    assert before.keys() == after.keys()
    assert sum(np.count_nonzero(tensor) for tensor in before.values()) == TOTAL
    assert sum(np.count_nonzero(tensor) for tensor in after.values()) == int(0.2 * TOTAL)
    assert han.metrics.after.unfolded_batch_norms == 0


def test_the_report_counts_zeros_and_promises_no_speed(han):
    metrics = Metrics.model_validate_json((han.folder / "metrics.json").read_text())
    layers = reported(metrics)
    assert list(layers) == ["features.0.weight", "features.4.weight", "classifier.weight"]
    assert [weights for weights, _ in layers.values()] == [144, 4608, 320]
    assert layers["features.4.weight"][1] == np.count_nonzero(
        initializers(han.folder)[32, 16, 3, 3]
    )
    pruning = metrics.pruning
    assert pruning.kept_share == {
        "macs": 1.0,
        "params": 1.0,
        "weights": pytest.approx(0.2, abs=1e-3),
    }
    assert (pruning.budget, pruning.groups, pruning.frozen) == ({"weights": 0.2}, [], [])
    assert any("no network faster on a dense runtime" in note for note in pruning.notes)
    summary = (han.folder / "summary.md").read_text()
    assert "20.0% of the weights of its layers are not zero" in summary
    assert "| `features.4.weight` | 4,608 |" in summary
    assert "no network faster" in summary


def test_the_network_learned_and_kept_it(han):
    by_stage = {stage.stage: stage.metrics["top1"] for stage in han.metrics.stages}
    assert list(by_stage) == ["original", "zeroed", "finetuned"]
    assert by_stage["original"] > 85  # chance is 10
    assert by_stage["finetuned"] > 80


def test_the_table_on_the_terminal_has_the_weights(han):
    assert "weights that may be zero" in shown(results_table(han.metrics))


def test_the_weights_come_back_from_the_folder(han, tmp_path):
    source = load_model(
        "digits:convnet", {"widths": [16, 32]}, base_dir=tmp_path, num_classes=10, checkpoint=None
    )
    loaded = p2d.load_pruned(source, han.folder / "pruned.safetensors", han.folder / "plan.json")
    kept = sum(int(loaded.get_parameter(n).count_nonzero()) for n in reported(han.metrics))
    assert kept == int(0.2 * TOTAL)


def test_the_resolved_recipe_runs_again_to_the_same_network(han, tmp_path):
    again = run_recipe(load_recipe(han.folder / "recipe.yaml"), tmp_path / "again")
    for name in ("original.onnx", "pruned.onnx", "plan.json"):
        assert again.metrics.files[name] == han.metrics.files[name], name


def test_two_of_four_hold_in_the_file_itself(tmp_path):
    done = run(tmp_path, "{method: han, budget: {pattern: '2:4'}}")
    weights = initializers(done.folder)
    fours = np.moveaxis(weights[32, 16, 3, 3], 1, -1).reshape(-1, 4)
    assert (np.count_nonzero(fours, axis=1) == 2).all()
    # One input channel cannot be taken four at a time.
    assert np.count_nonzero(weights[16, 1, 3, 3]) == 144
    assert reported(done.metrics)["classifier.weight"] == (320, 160)
    notes = " ".join(done.metrics.pruning.notes)
    assert "Left dense, as their input channels are no multiple of 4: features.0.weight." in notes
    assert "TensorRT" in notes


@pytest.mark.parametrize(
    ("prune", "accuracy"),
    [
        (
            "{method: gsm, budget: {weights: 0.3}, train: {epochs: 3, lr: 0.02, momentum: 0.95, "
            "nesterov: false, precision: fp32}}",
            80,
        ),
        (
            "{method: sparse_momentum, budget: {weights: 0.3}, "
            "train: {epochs: 4, lr: 0.1, precision: fp32}}",
            60,
        ),
        (
            "{method: lottery_ticket, rewind: 0.1, budget: {weights: 0.3}, "
            "train: {epochs: 3, lr: 0.1, precision: fp32}, schedule: {kind: iterative, rounds: 2}}",
            60,
        ),
    ],
)
def test_every_method_goes_through(prune, accuracy, tmp_path):
    done = run(tmp_path, prune)
    found = sum(np.count_nonzero(tensor) for tensor in initializers(done.folder).values())
    # sparse_momentum rounds layer by layer.
    assert int(0.3 * TOTAL) - 3 < found <= int(0.3 * TOTAL)
    assert done.metrics.after.metrics["top1"] > accuracy


def test_a_check_shows_layers_and_trains_nothing(tmp_path):
    text = RECIPE.replace("PRUNE", "{method: han, budget: {pattern: '2:4'}}")
    report = check_recipe(parse_recipe(text, tmp_path / "r.yaml"))
    assert [(w.weights, w.kept) for w in report.layers] == [(144, 144), (4608, 2304), (320, 160)]
    assert "2,304" in shown(check_table(report))


def test_plans_of_channels_and_masks_of_weights_are_not_mixed_up():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3))
    graph = p2d.trace(model, torch.randn(1, 4, 8, 8))
    with pytest.raises(MethodError, match=r"han keeps single weights.*prune2deploy\.weight_masks"):
        p2d.plan(graph, "han", budget={"channels": 0.5})
    with pytest.raises(MethodError, match=r"l1 scores channels.*prune2deploy\.plan"):
        p2d.weight_masks(model, "l1", budget={"weights": 0.5})
    with pytest.raises(BudgetError, match="exactly one of macs, params, channels; found: weights"):
        p2d.plan(graph, "l1", budget={"weights": 0.5})


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({"macs": 0.5}, "exactly one of weights, pattern; found: macs"),
        ({}, "found: nothing"),
        ({"weights": 1.0}, "is not a share between 0 and 1"),
        ({"weights": True}, "is not a share between 0 and 1"),
        ({"pattern": "1:4"}, "found '1:4', expected '2:4'"),
        ({"pattern": "2:4"}, "multiple of 4"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(budget, problem):
    with pytest.raises(BudgetError, match=problem):
        p2d.weight_masks(torch.nn.Sequential(torch.nn.Linear(6, 3)), budget=budget)


def test_masks_from_python_leave_the_model_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = p2d.weight_masks(model, "han", budget={"weights": 0.25}, threshold="global")
    assert sum(int(mask.sum()) for mask in masks.values()) == 0.25 * 576
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_excluded_layers_stay_whole_and_a_slip_is_told():
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3))
    masks = p2d.weight_masks(model, budget={"weights": 0.5}, exclude=["1"])
    assert list(masks) == ["0.weight"]
    with pytest.raises(ModelError, match="exclude: 'l' matches no parameter"):
        p2d.weight_masks(model, budget={"weights": 0.5}, exclude=["l"])
