"""Figures go to TensorBoard and MLflow, and a trouble there is no trouble of the run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_run import device, full_metrics, metrics

from prune2deploy.errors import MissingDependencyError, TrainingError
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.run import RunOptions, run_until
from prune2deploy.pipeline.tracking import check_tracking, final_figures, tracking
from prune2deploy.recipe import LogSection, Recipe, parse_recipe
from prune2deploy.train import EpochRecord, tell_epoch

RECIPE = """\
name: tracked
threads: 1
model: {source: digits:convnet, input: [1, 8, 8]}
data: {source: digits, normalize: none, val: 0.1}
pretrain: {epochs: 2, lr: 0.1}
prune: {method: l1, budget: {macs: 0.5}}
"""
EPOCHS = [
    EpochRecord(1, 10, 0.5, 0.1, 1000.0, {"top1": 80.0}),
    EpochRecord(2, 10, 0.25, 0.05, 1000.0, {"top1": 90.0}),
]


def recipe(tmp_path: Path, log: str) -> Recipe:
    return parse_recipe(f"{RECIPE}log: {log}\n", tmp_path / "recipe.yaml")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of MLflow that is a folder, which needs no server."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return (tmp_path / "store").as_uri()


def runs_of(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("prune2deploy")
    return list(client.search_runs([experiment.experiment_id]))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(one.step, one.value) for one in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_epochs_and_final_figures_are_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = RunFolder(tmp_path / "run")
    with tracking(recipe(tmp_path, "{tensorboard: true}"), folder) as tracker:
        tracker.open()
        for one in EPOCHS:
            tell_epoch("Fine-tuning (a b)", one)
        tracker.final(metrics())
    found = events(folder.path / "tensorboard")
    assert found["fine-tuning_a_b_/loss"] == [(1, 0.5), (2, 0.25)]
    assert found["fine-tuning_a_b_/val_top1"] == [(1, 80.0), (2, 90.0)]
    assert found["fine-tuning_a_b_/lr"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.05))]
    assert found["final/top1"] == [(0, 88.0)]


def test_a_run_of_mlflow_goes_on_after_a_stop(tmp_path: Path, store: str) -> None:
    folder = RunFolder(tmp_path / "run")
    asked = recipe(tmp_path, f"{{mlflow: '{store}'}}")

    def stopped() -> None:
        with tracking(asked, folder) as tracker:
            tracker.open()
            tell_epoch("Fine-tuning", EPOCHS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    (run,) = runs_of(store)
    assert run.info.status == "KILLED"
    with tracking(asked, folder) as tracker:
        tracker.open()
        tell_epoch("Fine-tuning", EPOCHS[1])
        tracker.final(metrics())
    (run,) = runs_of(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tracked")
    assert run.data.params["prune.method"] == "l1"
    assert run.data.metrics["fine-tuning/loss"] == 0.25
    assert run.data.metrics["final/macs_share"] == 0.5
    assert json.loads((folder.path / "tracking.json").read_text())["run_id"] == run.info.run_id


def test_a_run_that_fails_is_failed_there(tmp_path: Path, store: str) -> None:
    def failing() -> None:
        folder = RunFolder(tmp_path / "run")
        with tracking(recipe(tmp_path, f"{{mlflow: '{store}'}}"), folder) as tracker:
            tracker.open()
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        failing()
    assert [run.info.status for run in runs_of(store)] == ["FAILED"]


def test_a_store_that_is_none_is_an_error_before_any_work(tmp_path: Path, store: str) -> None:
    asked = recipe(tmp_path, "{mlflow: 'nonsense://x'}")
    with (
        tracking(asked, RunFolder(tmp_path / "run")) as tracker,
        pytest.raises(TrainingError, match="MLflow at nonsense://x cannot be used"),
    ):
        tracker.open()


def test_what_fails_on_the_way_is_told_once_and_left(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prune2deploy.train.loggers import MlflowLogger

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route")

    asked = recipe(tmp_path, f"{{mlflow: '{store}'}}")
    with (
        caplog.at_level(logging.WARNING, logger="prune2deploy"),
        tracking(asked, RunFolder(tmp_path / "run")) as tracker,
    ):
        tracker.open()
        monkeypatch.setattr(MlflowLogger, "log_metrics", broken)
        for one in EPOCHS:
            tell_epoch("Fine-tuning", one)
    told = [one.getMessage() for one in caplog.records]
    assert told == [
        "MlflowLogger failed (OSError: no route); the run goes on, and nothing more is sent there."
    ]


def test_nobody_is_told_outside() -> None:
    tell_epoch("Training", EPOCHS[0])


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    check_tracking(LogSection())
    with pytest.raises(MissingDependencyError, match=r"prune2deploy\[tensorboard\]"):
        check_tracking(LogSection(tensorboard=True))
    with pytest.raises(MissingDependencyError, match=r"prune2deploy\[mlflow\]"):
        check_tracking(LogSection(mlflow="http://localhost:5000"))


def test_a_password_does_not_belong_in_a_recipe() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        LogSection(mlflow="https://me:secret@host")
    assert LogSection(mlflow="https://host").mlflow == "https://host"


def test_the_final_figures() -> None:
    found = final_figures(metrics(latency=[device("my pi", 1.6)]))
    assert found == {
        "final/macs_share": 0.5,
        "final/params_share": 0.5,
        "final/onnx_bytes": 400_000,
        "final/gates_held": 1.0,
        "final/top1": 88.0,
        "final/top1_before": 90.0,
        "final/speedup_my_pi": 1.6,
        "final/median_ms_original_my_pi": 2.0,
        "final/median_ms_pruned_my_pi": 1.25,
    }
    assert final_figures(full_metrics())["final/int8_top1"] == 87.5
    assert final_figures(full_metrics())["final/gates_held"] == 0.0


def test_a_training_of_a_run_is_followed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    asked = recipe(tmp_path, "{tensorboard: true}")
    folder = run_until(asked, "pretrain", tmp_path / "run", RunOptions())
    found = events(folder / "tensorboard")
    losses = [value for _, value in found["training/loss"]]
    assert [step for step, _ in found["training/loss"]] == [1, 2]
    assert losses[1] < losses[0]
    assert found["training/val_top1"][1][1] > 20  # chance is 10
