"""TensorRT engines of the pruned network: built on their devices, and compared with ONNX Runtime.

A difference from the ONNX file that an engine was built from is a fault of the build, whatever
the precision; a difference from PyTorch has what the precision costs in it as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prune2deploy.devices import Devices
from prune2deploy.errors import DeviceError, ExportError
from prune2deploy.export.outputs import run_named
from prune2deploy.export.parity import OnnxModel, compare
from prune2deploy.latency import NVIDIA, outputs_on
from prune2deploy.latency.engines import BuildOptions, Engine, build_engine
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs
from prune2deploy.recipe import EnginesSection, Recipe
from prune2deploy.report import EngineFigures

log = logging.getLogger(__name__)

_COMPARED = 256
"""Test images on which an engine is compared."""


def engine_devices(recipe: Recipe, devices: Devices) -> list[str]:
    """The devices that engines are built on, in the order of the recipe."""
    names = dict.fromkeys([*recipe.profile.on, *recipe.export.engines.on])
    chosen = set(recipe.export.engines.on)
    return [name for name in names if name in chosen or devices[name].runtime in NVIDIA]


def build_settings(recipe: Recipe) -> dict[str, object]:
    """Options of every build of a recipe, for the probe; a measurement must use the same."""
    section = recipe.export.engines
    return {
        "dla": section.dla,
        "workspace_mb": section.workspace_mb,
        "min_share": section.min_share,
        "sparse": recipe.prune.budget.pattern == "2:4",
    }


def build_engines(
    recipe: Recipe,
    networks: Mapping[str, Path],
    inputs: Inputs,
    model: nn.Module,
    devices: Devices,
    folder: Path,
) -> list[EngineFigures]:
    """Build an engine of each file on each device, and compare it.

    Args:
        networks: ONNX files by the name they are measured under.
        model: the network they were made from, for the comparison with PyTorch.
        folder: the run's; engines go to engines/DEVICE.

    Raises:
        DeviceError: it cannot be built there, or computes in another precision than its file.
        ExportError: its answers differ by more than the recipe allows; the engine is kept.
    """
    settings = build_settings(recipe)
    section = recipe.export.engines
    options = BuildOptions(
        dla=section.dla,
        workspace_mb=section.workspace_mb,
        min_share=section.min_share,
        sparse=bool(settings["sparse"]),
    )
    loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH, limit=_COMPARED)
    images = torch.cat([batch for batch, _ in loader])
    found = []
    for device in engine_devices(recipe, devices):
        for path in networks.values():
            output = folder / "engines" / device
            engine = build_engine(
                path, device=device, options=options, output=output, devices=devices
            )
            judged = _judged(path, device, images, inputs, model, devices, settings)
            figures = _figures(engine, folder, judged)
            found.append(figures)
            log.info("Engine %s on %s: %s", figures.file, device, judged)
            _require(figures, section)
    return found


@dataclass(frozen=True)
class _Judged:
    """How an engine answers; reason: why nobody knows."""

    samples: int = 0
    agreement: float | None = None
    agreement_with_torch: float | None = None
    difference: float | None = None
    reason: str | None = None


def _judged(
    path: Path,
    device: str,
    images: Tensor,
    inputs: Inputs,
    model: nn.Module,
    devices: Devices,
    settings: Mapping[str, object],
) -> _Judged:
    task = inputs.task
    with OnnxModel(path) as session:
        expected = session.predict(images)
    try:
        answers = outputs_on(
            path, [images.numpy()], device=device, devices=devices, engine=settings
        )
    except DeviceError as err:
        if err.kind != "no_gpu":
            raise
        return _Judged(reason=str(err))
    given = {name: torch.from_numpy(answers[name]) for name in expected if name in answers}
    _, relative = compare(expected, given, tolerance=float("inf"), what=f"the engine on {device}")
    plain = _torch_answers(model, images, inputs)
    return _Judged(
        len(images),
        task.agreement(expected, given),
        task.agreement(plain, given),
        relative,
    )


def _torch_answers(model: nn.Module, images: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    parts = [run_named(model, chunk, inputs.task.outputs) for chunk in images.split(64)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(engine: Engine, folder: Path, judged: _Judged) -> EngineFigures:
    assert engine.copy is not None
    facts, built = engine.facts, engine.facts["facts"]
    inspection = facts.get("inspection") if facts.get("inspected") else None
    return EngineFigures(
        device=engine.device,
        file=engine.copy.relative_to(folder).as_posix(),
        precision=built["precision"],
        runtime=built["runtime"],
        version=str(built["version"]),
        gpu=built["gpu"],
        bytes=engine.copy.stat().st_size,
        share=None if inspection is None else inspection["share"],
        samples=judged.samples,
        agreement=judged.agreement,
        agreement_with_torch=judged.agreement_with_torch,
        max_rel_difference=judged.difference,
        not_judged=judged.reason,
        warnings=[str(warning) for warning in facts.get("warnings") or []],
    )


def _require(found: EngineFigures, section: EnginesSection) -> None:
    """Refuse an engine that answers otherwise than its file."""
    if found.not_judged is not None:
        log.warning("The engine %s could not be compared: %s", found.file, found.not_judged)
        return
    limit = section.tolerance.get(found.precision, 0.0)  # type: ignore[call-overload]
    assert found.max_rel_difference is not None
    problems = []
    if not found.max_rel_difference <= limit:
        problems.append(
            f"its outputs differ by {found.max_rel_difference:.2g} of the largest, and "
            f"export.engines.tolerance allows {limit:.2g} for {found.precision}"
        )
    if found.agreement is not None and found.agreement < section.min_agreement:
        problems.append(
            f"it agrees on {found.agreement:.1%} of {found.samples} test images, and "
            f"export.engines.min_agreement is {section.min_agreement:.1%}"
        )
    if problems:
        raise ExportError(
            f"The engine {found.file} on {found.device} does not answer like the ONNX file it was "
            f"built from: {'; '.join(problems)}. Keep more layers in a higher precision, try "
            "another version of TensorRT, or allow more."
        )


def not_judged(figures: Sequence[EngineFigures]) -> str | None:
    """One text for all engines that could not be compared, or None."""
    named = [f"{one.file}: {one.not_judged}" for one in figures if one.not_judged is not None]
    return "; ".join(named) or None
