"""The export and profile stages: one ONNX file per network, compared and timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from torch import nn

from prune2deploy.channels import trace
from prune2deploy.export import export_model_file, onnx_metadata
from prune2deploy.latency import Campaign, ProfileOptions, measure_on
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs
from prune2deploy.recipe import OnnxSection, ProfileSection
from prune2deploy.report import NetworkFigures, ParityFigures


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


def profile_networks(
    models: Mapping[str, Path], section: ProfileSection, seed: int, folder: Path
) -> Campaign:
    """Time the networks side by side on each device of the recipe; the first is the baseline.

    folder: of the run, where results are kept.
    """
    options = ProfileOptions(threads=section.threads, min_time_s=section.min_time_s, seed=seed)
    return measure_on(section.on, models, options=options, retries=section.retries, output=folder)
