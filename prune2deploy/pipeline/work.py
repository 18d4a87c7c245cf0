"""What each stage of a run does. Every stage starts from what earlier ones left on disk.

So a run that was stopped and went on has computed exactly what it would have without the stop.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from prune2deploy.channels import save_pruned, save_weights
from prune2deploy.latency import Campaign
from prune2deploy.methods import METHODS
from prune2deploy.methods.common.weights import MaskKeeper
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.deploy import export_network, profile_networks
from prune2deploy.pipeline.dist import write_dist
from prune2deploy.pipeline.engines import build_engines, build_settings
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, train_settings
from prune2deploy.pipeline.job import Done, Job
from prune2deploy.pipeline.precisions import lower_precisions
from prune2deploy.pipeline.pruning import prune
from prune2deploy.pipeline.record import gather_metrics, search_figures
from prune2deploy.pipeline.search.point import prune_to_point, search_front
from prune2deploy.pipeline.weights import prune_weights
from prune2deploy.recipe import TrainSection
from prune2deploy.report import (
    EngineFigures,
    FrozenChannels,
    Metrics,
    NetworkFigures,
    PrecisionFigures,
    Stage,
    summary_markdown,
    write_front,
)
from prune2deploy.search import read_record
from prune2deploy.train import Hooks, TrainSettings, evaluate, fit

log = logging.getLogger(__name__)


def pretrain(job: Job) -> Done:
    """Train the network first."""
    assert job.recipe.pretrain is not None
    model = job.inputs.model
    _train(job, job.recipe.pretrain, model, None, "Training", "pretrain")
    if not job.follower:
        save_weights(model, job.folder.file(files.ORIGINAL_WEIGHTS))
    return Done([files.ORIGINAL_WEIGHTS])


def original(job: Job) -> Done:
    """Judge the network that is pruned."""
    return Done(result={"metrics": _judged(job, "original", job.original())})


def search_stage(job: Job) -> Done:
    """Try networks of other widths, and keep their front."""
    record, names = search_front(
        job.recipe, job.inputs, job.original(), job.folder, job.checkpoints
    )
    job.folder.write(files.SEARCH, record.model_dump_json(indent=2) + "\n")
    write_front(record, job.folder.file(files.FRONT))
    return Done([files.SEARCH, files.FRONT, *names], {"tried": len(record.tried)})


def prune_stage(job: Job) -> Done:
    """Prune, and judge what is left."""
    recipe = job.recipe
    point = None
    if recipe.prune.search is not None:
        pruned, point = prune_to_point(recipe, job.inputs, job.original(), job.folder)
    elif METHODS[recipe.prune.method].granularity == "weight":
        pruned = prune_weights(recipe, job.inputs, job.original(), job.checkpoints)
    else:
        pruned = prune(recipe, job.inputs, job.original(), job.checkpoints)
    if job.follower:
        return Done()
    names = [job.weights_file, files.PLAN]
    save_pruned(pruned.model, pruned.plan, *map(job.folder.file, names))
    if pruned.masks is not None:
        masks = job.folder.file(files.MASKS)
        save_file({k: v.contiguous() for k, v in pruned.masks.items()}, masks)
        names.append(files.MASKS)
    stage = "cut" if pruned.masks is None else "zeroed"
    graph = pruned.graph
    return Done(
        names,
        {
            "stage": stage,
            "metrics": _judged(job, stage, pruned.model),
            "frozen": [
                FrozenChannels(layer=f.name, channels=f.size, reason=f.reason).model_dump()
                for f in ([] if graph is None else graph.frozen)
            ],
            "unknown_ops": {} if graph is None else dict(graph.unknown_ops),
            "point": point,
        },
    )


def finetune(job: Job) -> Done:
    """Train the pruned network."""
    assert job.recipe.finetune is not None
    pruned = job.pruned(files.CUT_WEIGHTS)
    model = pruned.model
    keeper = None if pruned.masks is None else MaskKeeper(model, pruned.masks)
    _train(job, job.recipe.finetune, model, job.original(), "Fine-tuning", "finetune", keeper)
    if job.follower:
        return Done()
    save_weights(model, job.folder.file(files.WEIGHTS))
    return Done([files.WEIGHTS], {"metrics": _judged(job, "finetuned", model)})


def export(job: Job) -> Done:
    """Write both networks as ONNX files."""
    stages = judged_stages(job)
    networks = {
        "original": (job.original(), stages[0]),
        "pruned": (job.pruned(files.WEIGHTS).model, stages[-1]),
    }
    figures = {}
    for name, (model, stage) in networks.items():
        path = job.folder.file(files.ONNX[name])
        onnx = job.recipe.export.onnx
        figures[name] = export_network(model, path, job.inputs, onnx, stage.metrics).model_dump()
    return Done(list(files.ONNX.values()), figures)


def precisions(job: Job) -> Done:
    """Write the lower precisions, and judge each."""
    recipe = job.recipe
    lower, section = recipe.export.lower, recipe.export.int8.finetune
    pruned = job.pruned(files.WEIGHTS)

    def train(model: nn.Module) -> None:
        assert section is not None
        # In one process: the others do not know whether it is needed. In fp32: bf16 would
        # round more than int8 does.
        precision = "fp32" if section.precision == "auto" else section.precision
        settings = replace(
            train_settings(section, recipe),
            precision=precision,
            devices=1,
            num_nodes=1,
            strategy="auto",
        )
        _fit(job, settings, model, job.original(), "Fine-tuning for int8", "int8")

    found = lower_precisions(
        job.folder.file(files.ONNX["pruned"]),
        {name: job.folder.file(files.PRECISIONS[name]) for name in lower},
        recipe.export,
        job.inputs,
        [job.devices[name] for name in recipe.profile.on],
        recipe.seed,
        pruned.model,
        None if section is None else train,
    )
    names = [files.PRECISIONS[name] for name in lower]
    return Done(names, {"precisions": [one.model_dump() for one in found]})


def engines(job: Job) -> Done:
    """Build TensorRT engines of the pruned network, and compare them."""
    networks = {name: path for name, path in onnx_files(job).items() if name != "original"}
    pruned = job.pruned(files.WEIGHTS)
    found = build_engines(
        job.recipe, networks, job.inputs, pruned.model, job.devices, job.folder.path
    )
    names = [name for one in found for name in (one.file, f"{one.file}.json")]
    return Done(names, {"engines": [one.model_dump() for one in found]})


def profile(job: Job) -> Done:
    """Measure on the devices."""
    campaign = measured(job)
    for failure in campaign.failures:
        log.error("Not measured on %s: %s", failure.device, failure.message)
    names = [f"{files.LATENCY}/{one.device}.json" for one in campaign.results]
    return Done(names, whole=not campaign.failures)


def measured(job: Job) -> Campaign:
    """What was measured. Where that was done already, of the same files, it is read again."""
    if job.campaign is None:
        job.campaign = profile_networks(
            onnx_files(job),
            job.recipe.profile,
            seed=job.recipe.seed,
            devices=job.devices,
            folder=job.folder.path,
            engine=build_settings(job.recipe),
        )
    return job.campaign


def report(job: Job) -> Done:
    """Write metrics.json and what is made from it."""
    campaign = measured(job)
    prune_result, exported = job.result("prune"), job.result("export")
    found = job.records.get("precisions")
    searched = read_record(job.folder.file(files.SEARCH)) if prune_result["point"] else None
    metrics = gather_metrics(
        recipe=job.recipe,
        inputs=job.inputs,
        pruned=job.pruned(files.WEIGHTS),
        frozen=[FrozenChannels(**one) for one in prune_result["frozen"]],
        unknown_ops=prune_result["unknown_ops"],
        search=None if searched is None else search_figures(searched, *prune_result["point"]),
        before=NetworkFigures.model_validate(exported["original"]),
        after=NetworkFigures.model_validate(exported["pruned"]),
        precisions=[
            PrecisionFigures.model_validate(one)
            for one in ([] if found is None else found.result["precisions"])
        ],
        engines=[
            EngineFigures.model_validate(one)
            for one in (job.result("engines")["engines"] if "engines" in job.records else [])
        ],
        campaign=campaign,
        stages=judged_stages(job),
        seconds={name: record.seconds for name, record in job.records.items()},
        folder=job.folder.path,
    )
    job.folder.write(files.METRICS, metrics.model_dump_json(indent=2) + "\n")
    job.folder.write(files.SUMMARY, summary_markdown(metrics, searched))
    _log_gates(metrics)
    dist = write_dist(job, metrics, onnx_files(job))
    made = [path.relative_to(job.folder.path).as_posix() for path in dist.rglob("*")]
    names = [files.METRICS, files.SUMMARY, *(n for n in made if job.folder.file(n).is_file())]
    return Done(names, whole=not campaign.failures)


WORK: dict[str, Callable[[Job], Done]] = {
    "pretrain": pretrain,
    "original": original,
    "search": search_stage,
    "prune": prune_stage,
    "finetune": finetune,
    "export": export,
    "precisions": precisions,
    "engines": engines,
    "profile": profile,
    "report": report,
}


def onnx_files(job: Job) -> dict[str, Path]:
    """The ONNX files that are measured; the first is the baseline."""
    found = {name: job.folder.file(file) for name, file in files.ONNX.items()}
    for name in job.recipe.export.lower:
        found[f"pruned {name}"] = job.folder.file(files.PRECISIONS[name])
    return found


def judged_stages(job: Job) -> list[Stage]:
    """The figures on the test images over the run."""
    found = [Stage(stage="original", metrics=job.result("original")["metrics"])]
    cut = job.result("prune")
    found.append(Stage(stage=cut["stage"], metrics=cut["metrics"]))
    if "finetune" in job.records:
        found.append(Stage(stage="finetuned", metrics=job.result("finetune")["metrics"]))
    return found


def _judged(job: Job, stage: str, model: nn.Module) -> dict[str, float]:
    """Evaluate on the test images."""
    loader = job.inputs.data.loader("test", batch_size=EVALUATION_BATCH)
    metrics = evaluate(model, job.inputs.task, loader, label=f"Testing ({stage})")
    log.info("%s: %s", stage, metrics)
    plain: dict[str, float] = json.loads(json.dumps(metrics))
    return plain


def _train(
    job: Job,
    section: TrainSection,
    model: nn.Module,
    original: nn.Module | None,
    label: str,
    name: str,
    hooks: Hooks | None = None,
) -> None:
    _fit(job, train_settings(section, job.recipe), model, original, label, name, hooks)


def _fit(
    job: Job,
    settings: TrainSettings,
    model: nn.Module,
    original: nn.Module | None,
    label: str,
    name: str,
    hooks: Hooks | None = None,
) -> None:
    teacher = copy.deepcopy(original) if settings.distill else None
    fit(
        model,
        job.inputs.task,
        job.inputs.data,
        settings,
        hooks=hooks,
        teacher=teacher,
        seed=job.recipe.seed,
        label=label,
        checkpoint=job.checkpoints.named(name),
    )


def _log_gates(metrics: Metrics) -> None:
    for gate in metrics.gates:
        log.info(
            "Gate %s: held %s, found %s, limit %g%s",
            gate.name,
            gate.held,
            "nothing" if gate.found is None else f"{gate.found:g}",
            gate.limit,
            f" ({gate.note})" if gate.note else "",
        )
