"""TensorRT engines, built on the device that will run them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import Devices, load_devices, open_device
from prune2deploy.errors import DeviceError
from prune2deploy.latency.options import NVIDIA as RUNTIMES

_LIMIT_S = 3600.0


@dataclass(frozen=True)
class BuildOptions:
    """How to build. runtime: None is the device's. batch: fewest, usual and most images."""

    runtime: str | None = None
    batch: tuple[int, int, int] | None = None
    capabilities: tuple[str, ...] = ()
    dla: int | None = None
    sparse: bool = False
    workspace_mb: int | None = None
    min_share: float = 0.5


@dataclass(frozen=True)
class Engine:
    """A built engine: where it lies on the device, its copy here, and the probe's facts of it."""

    device: str
    path: str
    copy: Path | None
    facts: Mapping[str, Any]


def file_precision(path: Path) -> str:
    """In which precision an engine of a file computes: the lowest that any of its layers has.

    Raises:
        DeviceError: it is int8 for another runtime.
    """
    # It takes torch and onnx, which a latency on a board needs for nothing else.
    from prune2deploy.export.precision import made_for_onnx_runtime, precision_of

    counts = precision_of(path)
    if counts["int8"].layers and made_for_onnx_runtime(path):
        raise DeviceError(
            f"{path} is int8 for ONNX Runtime (uint8 activations, or zero points that are not 0), "
            "which TensorRT does not parse. Quantize for TensorRT: name a device with it in "
            "profile.on, and export.precision: int8 is made for it; in Python "
            "to_int8(..., runtime='tensorrt')."
        )
    return "int8" if counts["int8"].layers else "fp16" if counts["fp16"].layers else "fp32"


def build_engine(
    model: Path,
    *,
    device: str = "local",
    options: BuildOptions | None = None,
    output: Path | None = None,
    devices: Devices | None = None,
) -> Engine:
    """Build an engine from an ONNX file on a device, or find the one that was built before.

    Args:
        model: its precision is what the engine computes in.
        output: folder that the engine and its description are copied to; None: they stay there.

    Raises:
        DeviceError: no TensorRT there, the file cannot be built, or what was built computes in
            another precision than the file says.
    """
    options = options or BuildOptions()
    if not model.is_file():
        raise DeviceError(f"No model file at {model}. Give the path of an ONNX file.")
    known = load_devices() if devices is None else devices
    with open_device(device, known) as opened:
        runtime = options.runtime or opened.settings.runtime
        if runtime not in RUNTIMES:
            raise DeviceError(
                f"Device '{device}' runs models with {runtime}, which needs no engine. Write "
                f"runtime: tensorrt in devices.yaml, or add --runtime {' or '.join(RUNTIMES)}."
            )
        sizes, named = options.batch, ("min", "opt", "max")
        job = {
            "ask": "build",
            "model": {"name": model.stem, "path": opened.place(model)},
            "runtime": runtime,
            "precision": file_precision(model),
            "batch": None if sizes is None else dict(zip(named, sizes, strict=True)),
            "capabilities": list(options.capabilities),
            "dla": options.dla,
            "sparse": options.sparse,
            "workspace_mb": options.workspace_mb,
            "min_share": options.min_share,
        }
        with progress.task(f"Building on {device}", 1.0) as shown:
            told = 0.0

            def report(line: Mapping[str, Any]) -> None:
                nonlocal told
                shown.advance(line["done"] - told, str(line["stage"]))
                told = line["done"]

            answer = opened.run_probe(job, time_limit_s=_LIMIT_S, report=report)
        engine = answer["engine"]
        copy = None
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            copy = output / f"{model.stem}.engine"
            opened.fetch(engine["path"], copy)
            copy.with_suffix(".engine.json").write_text(json.dumps(engine, indent=2) + "\n")
    return Engine(device, engine["path"], copy, {**engine, "versions": answer["versions"]})


def format_engine(engine: Engine) -> list[str]:
    """What was built, in sentences."""
    facts, built = engine.facts, engine.facts["facts"]
    how = "Found, built before" if facts["reused"] else f"Built in {facts['build_s']:.1f} s"
    lines = [
        f"{how}: {engine.path} on {engine.device}, {facts['size_bytes'] / 1e6:.1f} MB",
        f"{built['runtime']} {built['version']}, {built['precision']}, for "
        f"{built['gpu'] or ', '.join(built['options'].get('capabilities') or []) or 'portable'}",
    ]
    if facts.get("reason") and "no engine for it" not in facts["reason"]:
        lines.append(f"Built anew because {facts['reason']}")
    inspection = facts.get("inspection")
    if facts.get("inspected") and inspection:
        told = ", ".join(f"{count} {kind}" for kind, count in inspection["precisions"].items())
        lines.append(f"Its {inspection['computing']} computing layers: {told}")
    else:
        lines.append(f"What its layers compute in could not be read: {facts['inspected_reason']}")
    lines += [f"TensorRT warns: {warning}" for warning in facts.get("warnings") or []]
    if engine.copy is not None:
        lines.append(f"Copied to {engine.copy}")
    return lines
