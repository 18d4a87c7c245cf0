"""The export and profile stages: one ONNX file per network, compared and timed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from prune2deploy import __version__
from prune2deploy.channels import trace
from prune2deploy.export import Parity, check_parity, export_onnx, fold_batchnorm
from prune2deploy.latency import ProfileOptions, ProfileResult, profile
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
    folded = fold_batchnorm(model, inputs.example)
    with torch.no_grad():
        output_names = list(inputs.task.outputs(copy.deepcopy(folded).eval()(inputs.example)))
    export_onnx(
        folded,
        path,
        input_shape=inputs.data.input_shape,
        batch=options.batch,
        opset=options.opset,
        simplify=options.simplify,
        output_names=output_names,
        metadata=_onnx_metadata(inputs),
    )
    parity = check_parity(
        path,
        model,
        outputs=inputs.task.outputs,
        agreement=inputs.task.agreement,
        loader=inputs.data.loader("test", batch_size=EVALUATION_BATCH),
        tolerance=options.tolerance,
    )
    graph = trace(model, inputs.example)
    return NetworkFigures(
        metrics=metrics,
        params=graph.cost.params(graph.full),
        macs=graph.cost.macs(graph.full),
        onnx_bytes=path.stat().st_size,
        unfolded_batch_norms=_batch_norms(folded),
        parity=_parity_figures(parity),
    )


def _onnx_metadata(inputs: Inputs) -> dict[str, str]:
    data = inputs.data
    return {
        "producer": f"prune2deploy {__version__}",
        "classes": json.dumps(data.classes),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "input": json.dumps(list(data.input_shape)),
    }


def _batch_norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _parity_figures(parity: Parity) -> ParityFigures:
    return ParityFigures(
        max_abs_difference=parity.max_abs_diff,
        max_rel_difference=parity.max_rel_diff,
        agreement=parity.agreement,
        samples=parity.samples,
    )


def profile_networks(
    models: Mapping[str, Path], section: ProfileSection, seed: int
) -> list[ProfileResult]:
    """Time the networks side by side on each device of the recipe; the first is the baseline."""
    options = ProfileOptions(threads=section.threads, min_time_s=section.min_time_s, seed=seed)
    return [profile(models, device=device, options=options) for device in section.on]
