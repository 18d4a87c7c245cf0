"""The export and profile stages: one ONNX file per network, compared and timed."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from torch import nn

from prune2deploy.channels import trace
from prune2deploy.devices import Devices, load_devices
from prune2deploy.export import export_model_file, onnx_metadata
from prune2deploy.latency import Campaign, ProfileOptions, ResultFolder, profile_devices
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs
from prune2deploy.planning.timed.devices import devices_for_times, refuse_unknown
from prune2deploy.planning.timed.target import Export
from prune2deploy.recipe import OnnxSection, ProfileSection, Recipe
from prune2deploy.report import NetworkFigures, ParityFigures

log = logging.getLogger(__name__)


def exporter(recipe: Recipe, inputs: Inputs) -> Export:
    """What writes models as the recipe's ONNX files, to be measured."""
    onnx = recipe.export.onnx
    return lambda model, path: export_model_file(
        model,
        path,
        input_shape=inputs.data.input_shape,
        batch=onnx.batch,
        opset=onnx.opset,
        simplify=onnx.simplify,
        tolerance=onnx.tolerance,
        outputs=inputs.task.outputs,
    )


def export_network(
    model: nn.Module,
    path: Path,
    inputs: Inputs,
    options: OnnxSection,
    metrics: dict[str, float],
) -> NetworkFigures:
    """Fold, export, and compare the file with the unfolded model on all test images.

    Args:
        metrics: what the model measured on the test images, to go with the figures.

    Raises:
        ExportError: the export fails, or its numbers differ by more than the tolerance.
    """
    data, task = inputs.data, inputs.task
    parity = export_model_file(
        model,
        path,
        input_shape=data.input_shape,
        batch=options.batch,
        opset=options.opset,
        simplify=options.simplify,
        tolerance=options.tolerance,
        outputs=task.outputs,
        metadata=onnx_metadata(
            input_shape=data.input_shape, classes=data.classes, mean=data.mean, std=data.std
        ),
        samples=data.loader("test", batch_size=EVALUATION_BATCH),
        agreement=task.agreement,
    )
    graph = trace(model, inputs.example)
    return NetworkFigures(
        metrics=metrics,
        params=graph.cost.params(graph.full),
        macs=graph.cost.macs(graph.full),
        onnx_bytes=path.stat().st_size,
        unfolded_batch_norms=_batch_norms_in(path),
        parity=ParityFigures(
            max_abs_difference=parity.max_abs_diff,
            max_rel_difference=parity.max_rel_diff,
            agreement=parity.agreement,
            samples=parity.samples,
        ),
    )


def _batch_norms_in(path: Path) -> int:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "BatchNormalization" for node in nodes)


def devices_for(recipe: Recipe) -> Devices:
    """Return this machine's devices, among them all that the recipe names.

    Raises:
        DeviceError: it names others, a devices.yaml is not as it should be, or what needs the
            times of layers is for a runtime that does not tell them.
    """
    known = load_devices()
    budget, search = recipe.prune.budget, recipe.prune.search
    named = {
        "profile.on": recipe.profile.on,
        "export.engines.on": recipe.export.engines.on,
        "prune.budget.on": budget.on if budget.timed else (),
        "prune.search.on": (search.on,) if search is not None and search.cost == "latency" else (),
    }
    for key, names in named.items():
        refuse_unknown(key, names, known)
    for key in ("prune.budget.on", "prune.search.on"):
        devices_for_times(key, named[key], known)
    return known


def profile_networks(
    models: Mapping[str, Path],
    section: ProfileSection,
    *,
    seed: int,
    devices: Devices,
    folder: Path,
    engine: Mapping[str, object],
) -> Campaign:
    """Time the networks on each device of the recipe; the first is the baseline.

    What was measured there before, of the same files in the same way, is not measured again.

    engine: options of engines, for devices that build them. folder: the run's; each device's
    samples are in it as soon as it is done.
    """
    return profile_devices(
        models,
        section.on,
        options=ProfileOptions(
            threads=section.threads, min_time_s=section.min_time_s, seed=seed, engine=engine
        ),
        devices=devices,
        retries=section.retries,
        folder=ResultFolder(folder, say=log.info),
    )


def measure_rest_command(
    models: Sequence[Path], section: ProfileSection, devices: Sequence[str], folder: Path
) -> str:
    """Return the command that measures on these devices what a run could not."""
    words = ["prune2deploy", "profile", *map(str, models)]
    for name in devices:
        words += ["--on", name]
    if section.threads is not None:
        words += ["--threads", str(section.threads)]
    words += ["--min-time", f"{section.min_time_s:g}", "--retries", str(section.retries)]
    return shlex.join([*words, "--output", str(folder)])
