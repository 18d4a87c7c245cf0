"""`run`: the stages in order, and the folder they leave."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from prune2deploy import __version__
from prune2deploy.channels import save_pruned, save_weights
from prune2deploy.devices import Devices
from prune2deploy.latency import Campaign
from prune2deploy.methods import METHODS
from prune2deploy.methods.common.weights import MaskKeeper
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.deploy import (
    devices_for,
    export_network,
    measure_rest_command,
    profile_networks,
)
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs, open_inputs, train_settings
from prune2deploy.pipeline.precisions import lower_precisions
from prune2deploy.pipeline.pruning import Pruned, prune
from prune2deploy.pipeline.record import gather_metrics
from prune2deploy.pipeline.weights import prune_weights
from prune2deploy.recipe import Recipe, TrainSection, dump_recipe
from prune2deploy.report import (
    GateResult,
    LatencyFailure,
    Metrics,
    NetworkFigures,
    PrecisionFigures,
    Stage,
    summary_markdown,
)
from prune2deploy.train import Hooks, evaluate, fit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    measure_rest: the command that measures on the devices that failed; None: none did.
    """

    folder: Path
    metrics: Metrics
    measure_rest: str | None = None

    @property
    def failures(self) -> list[LatencyFailure]:
        """Every device that could not be measured."""
        return self.metrics.latency_failures

    @property
    def gates(self) -> list[GateResult]:
        """Every gate of the recipe with its verdict."""
        return self.metrics.gates

    @property
    def gates_held(self) -> bool:
        """Whether all of them held."""
        return all(gate.held for gate in self.gates)


@dataclass
class _Run:
    """State of one run while it goes on."""

    recipe: Recipe
    folder: RunFolder
    inputs: Inputs
    devices: Devices
    stages: list[Stage] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        log.info("Stage: %s", stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)

    def judge(self, stage: str, model: nn.Module) -> None:
        """Evaluate on the test images and remember the figures."""
        loader = self.inputs.data.loader("test", batch_size=EVALUATION_BATCH)
        metrics = evaluate(model, self.inputs.task, loader, label=f"Testing ({stage})")
        log.info("%s: %s", stage, metrics)
        self.stages.append(Stage(stage=stage, metrics=metrics))

    def save(self, pruned: Pruned) -> None:
        """Keep the pruned network as it is now."""
        weights = self.folder.file(files.WEIGHTS)
        save_pruned(pruned.model, pruned.plan, weights, self.folder.file(files.PLAN))


def run_recipe(recipe: Recipe, output: Path | None = None) -> RunResult:
    """Do everything a recipe says.

    Args:
        recipe: from load_recipe.
        output: folder for the results; None: the first free of runs/NAME, runs/NAME-2, ….

    Returns:
        The folder and metrics. Gates and devices that failed raise nothing: see `gates_held`
        and `failures`.

    Raises:
        Prune2DeployError: something the user can mend; what was made so far is kept.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    started = time.perf_counter()
    devices = devices_for(recipe.profile, recipe.prune.budget)
    # Opened first: a recipe that does not fit its files leaves no folder behind.
    inputs = open_inputs(recipe)
    folder = RunFolder.create(output, recipe.name)
    with folder.logging():
        log.info("prune2deploy %s, recipe '%s'", __version__, recipe.name)
        folder.write(files.RECIPE, dump_recipe(recipe))
        run = _Run(recipe, folder, inputs, devices)
        run.seconds["open"] = round(time.perf_counter() - started, 3)
        try:
            return _stages(run)
        except BaseException as err:
            log.error("Stopped: %s: %s", type(err).__name__, err)
            raise


def _stages(run: _Run) -> RunResult:
    recipe, inputs, folder = run.recipe, run.inputs, run.folder
    original = inputs.model
    if recipe.pretrain is not None:
        with run.timed("pretrain"):
            _train(run, recipe.pretrain, original, None, "Training")
            save_weights(original, folder.file(files.ORIGINAL_WEIGHTS))
    with run.timed("test original"):
        run.judge("original", original)
    with run.timed("prune"):
        if METHODS[recipe.prune.method].granularity == "weight":
            pruned = prune_weights(recipe, inputs, original)
        else:
            pruned = prune(recipe, inputs, original)
        run.save(pruned)
        run.judge("cut" if pruned.masks is None else "zeroed", pruned.model)
    if recipe.finetune is not None:
        with run.timed("finetune"):
            keeper = None if pruned.masks is None else MaskKeeper(pruned.model, pruned.masks)
            _train(run, recipe.finetune, pruned.model, original, "Fine-tuning", keeper)
            run.save(pruned)
            run.judge("finetuned", pruned.model)
    with run.timed("export"):
        before = _export(run, "original", original, run.stages[0])
        after = _export(run, "pruned", pruned.model, run.stages[-1])
    with run.timed("precisions"):
        precisions = _precisions(run)
    with run.timed("profile"):
        campaign = _profile(run)
    metrics = gather_metrics(
        recipe=recipe,
        inputs=inputs,
        pruned=pruned,
        before=before,
        after=after,
        precisions=precisions,
        campaign=campaign,
        stages=run.stages,
        seconds=run.seconds,
        folder=folder.path,
    )
    folder.write(files.METRICS, metrics.model_dump_json(indent=2) + "\n")
    folder.write(files.SUMMARY, summary_markdown(metrics))
    for gate in metrics.gates:
        log.info(
            "Gate %s: held %s, found %s, limit %g%s",
            gate.name,
            gate.held,
            "nothing" if gate.found is None else f"{gate.found:g}",
            gate.limit,
            f" ({gate.note})" if gate.note else "",
        )
    return RunResult(folder.path, metrics, _measure_rest(run, campaign))


def _train(
    run: _Run,
    section: TrainSection,
    model: nn.Module,
    original: nn.Module | None,
    label: str,
    hooks: Hooks | None = None,
) -> None:
    settings = train_settings(section, run.recipe.data.batch_size)
    teacher = copy.deepcopy(original) if settings.distill else None
    fit(
        model,
        run.inputs.task,
        run.inputs.data,
        settings,
        hooks=hooks,
        teacher=teacher,
        seed=run.recipe.seed,
        label=label,
    )


def _export(run: _Run, name: str, model: nn.Module, stage: Stage) -> NetworkFigures:
    path = run.folder.file(files.ONNX[name])
    return export_network(model, path, run.inputs, run.recipe.export.onnx, stage.metrics)


def _precisions(run: _Run) -> list[PrecisionFigures]:
    lower = run.recipe.export.lower
    if not lower:
        return []
    return lower_precisions(
        run.folder.file(files.ONNX["pruned"]),
        {name: run.folder.file(files.PRECISIONS[name]) for name in lower},
        run.recipe.export,
        run.inputs,
        [run.devices[name] for name in run.recipe.profile.on],
        run.recipe.seed,
    )


def _onnx_files(run: _Run) -> dict[str, Path]:
    found = {name: run.folder.file(file) for name, file in files.ONNX.items()}
    for name in run.recipe.export.lower:
        found[f"pruned {name}"] = run.folder.file(files.PRECISIONS[name])
    return found


def _profile(run: _Run) -> Campaign:
    recipe = run.recipe
    campaign = profile_networks(
        _onnx_files(run),
        recipe.profile,
        seed=recipe.seed,
        devices=run.devices,
        folder=run.folder.path,
    )
    for failure in campaign.failures:
        log.error("Not measured on %s: %s", failure.device, failure.message)
    return campaign


def _measure_rest(run: _Run, campaign: Campaign) -> str | None:
    if not campaign.failures:
        return None
    failed = [failure.device for failure in campaign.failures]
    models = list(_onnx_files(run).values())
    return measure_rest_command(models, run.recipe.profile, failed, run.folder.path)
