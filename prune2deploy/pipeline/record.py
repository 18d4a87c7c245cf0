"""metrics.json: gather what the stages found."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prune2deploy import __version__
from prune2deploy.doctor.machine import examine_machine
from prune2deploy.latency import Campaign
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.engines import not_judged
from prune2deploy.pipeline.folder import sha256_of
from prune2deploy.pipeline.gates import check_gates
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.pruning import Pruned
from prune2deploy.pipeline.weights import layer_weights
from prune2deploy.recipe import Recipe
from prune2deploy.report import (
    EngineFigures,
    FileRecord,
    FrontFigures,
    FrozenChannels,
    GateResult,
    GroupChoice,
    LatencyFailure,
    LayerWeights,
    Metrics,
    NetworkFigures,
    PrecisionFigures,
    Pruning,
    SearchFigures,
    Stage,
)
from prune2deploy.search import SearchRecord


def gather_metrics(
    *,
    recipe: Recipe,
    inputs: Inputs,
    pruned: Pruned,
    frozen: list[FrozenChannels],
    unknown_ops: dict[str, int],
    search: SearchFigures | None,
    before: NetworkFigures,
    after: NetworkFigures,
    precisions: list[PrecisionFigures],
    engines: list[EngineFigures],
    campaign: Campaign,
    stages: list[Stage],
    seconds: dict[str, float],
    folder: Path,
) -> Metrics:
    """Put together metrics.json, check the gates, and hash the files of the folder."""
    latency: list[dict[str, Any]] = json.loads(json.dumps([r.to_dict() for r in campaign.results]))
    metric = inputs.task.metric
    gated = recipe.gated_precision
    judged = next((one for one in precisions if one.precision == gated), after)
    gates = check_gates(
        recipe.gates,
        metric_before=before.metrics[metric],
        metric_after=judged.metrics[metric],
        pruned="pruned" if gated == "fp32" else f"pruned {gated}",
        higher_is_better=inputs.task.higher_is_better,
        latency=latency,
        not_measured=[failure.device for failure in campaign.failures],
        allow_tainted=recipe.profile.allow_tainted,
        onnx_bytes=judged.onnx_bytes,
    )
    gates += _engine_gate(recipe, engines)
    checkpoint = recipe.model.checkpoint
    return Metrics(
        name=recipe.name,
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        versions=_versions(),
        machine=_machine(),
        seed=recipe.seed,
        model={
            "source": recipe.model.source,
            "args": recipe.model.args,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "checkpoint_sha256": None if checkpoint is None else sha256_of(checkpoint),
        },
        data=inputs.data.describe(),
        metric=metric,
        higher_is_better=inputs.task.higher_is_better,
        stages=stages,
        before=before,
        after=after,
        precisions=precisions,
        engines=engines,
        gated_precision=gated,
        pruning=_pruning(recipe, pruned, frozen, unknown_ops, before, after),
        search=search,
        latency=latency,
        latency_failures=[
            LatencyFailure(device=one.device, message=one.message) for one in campaign.failures
        ],
        gates=gates,
        seconds=seconds,
        files=_files(folder, [result.device for result in campaign.results]),
    )


def search_figures(record: SearchRecord, point: int, reason: str) -> SearchFigures:
    """What metrics.json has of a search. point, reason: the network that was finished."""
    return SearchFigures(
        metric=record.metric,
        judged_on=record.judged_on,
        images=record.images,
        cost=record.cost.name,
        unit=record.cost.unit,
        device=record.cost.device,
        measured=record.cost.measured,
        tried=len(record.tried),
        front=[
            FrontFigures(
                point=one.number,
                accuracy=one.accuracy,
                cost=one.cost,
                macs=one.macs,
                params=one.params,
            )
            for one in record.front
        ],
        point=point,
        reason=reason,
    )


def _engine_gate(recipe: Recipe, engines: list[EngineFigures]) -> list[GateResult]:
    """What an engine answers was compared; one that could not be is not as good as one that was."""
    if not engines:
        return []
    found = [one.agreement for one in engines if one.agreement is not None]
    note = not_judged(engines)
    return [
        GateResult(
            name="engines_agree",
            held=note is None,
            found=min(found, default=None),
            limit=recipe.export.engines.min_agreement,
            note=note,
        )
    ]


def _files(folder: Path, devices: list[str]) -> dict[str, FileRecord]:
    """Hashes by name. Files that grow or are written after this are not in the list."""
    later = (files.LOG, files.METRICS, files.SUMMARY, files.REPORT, files.LOCK)
    paths = [path for path in folder.iterdir() if path.is_file() and path.name not in later]
    paths += [path for path in (folder / files.ENGINES).rglob("*") if path.is_file()]
    paths += [folder / files.LATENCY / f"{device}.json" for device in devices]
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            sha256=sha256_of(path), bytes=path.stat().st_size
        )
        for path in sorted(paths)
    }


def _pruning(
    recipe: Recipe,
    pruned: Pruned,
    frozen: list[FrozenChannels],
    unknown_ops: dict[str, int],
    before: NetworkFigures,
    after: NetworkFigures,
) -> Pruning:
    kept_share = {"macs": after.macs / before.macs, "params": after.params / before.params}
    layers: list[LayerWeights] = []
    if pruned.masks is not None:
        layers = layer_weights(pruned.model, pruned.masks)
        kept_share["weights"] = sum(w.kept for w in layers) / sum(w.weights for w in layers)
    return Pruning(
        method=recipe.prune.method,
        options=recipe.prune.options,
        budget=recipe.prune.budget.asked(),
        kept_share=kept_share,
        groups=[
            GroupChoice(group=c.group, channels=c.channels, kept=c.kept)
            for c in pruned.plan.choices
        ],
        weights=layers,
        frozen=frozen,
        unknown_ops=unknown_ops,
        notes=list(pruned.plan.notes),
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "lightning-fabric")
    return {
        "prune2deploy": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _machine() -> dict[str, Any]:
    found = examine_machine()
    return {
        "cpu": found.cpu or "unknown",
        "features": [name for name, present in found.features.items() if present],
        "board": found.board,
        "architecture": found.architecture,
        "kernel": found.kernel,
        "cores": found.cores,
        "memory_bytes": found.memory_bytes,
        "threads": torch.get_num_threads(),
    }
