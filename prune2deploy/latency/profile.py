"""Time ONNX models on a device, side by side: the probe measures there, results.py judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import (
    Answer,
    CommonSettings,
    Device,
    Devices,
    load_devices,
    open_device,
)
from prune2deploy.errors import DeviceError
from prune2deploy.latency.engines import file_precision
from prune2deploy.latency.options import BUILT, ProfileOptions, options_on
from prune2deploy.latency.results import ProfileResult, result_of_device


def profile(
    models: Sequence[Path] | Mapping[str, Path],
    *,
    device: str = "local",
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
) -> ProfileResult:
    """Measure ONNX files interleaved on a device; the first is the baseline of the speed-ups.

    Args:
        models: the files, or {name: file}. Files alone are named by their stem, or by their path
            where two have the same.
        device: "local", or a name of devices.yaml.
        devices: the known ones; None: as devices.yaml has them.

    Raises:
        DeviceError: a file cannot be loaded there, the setting is not to be had, or the
            measurement failed; the message says which and what to do.
    """
    options = options or ProfileOptions()
    paths = named_models(models)
    known = load_devices() if devices is None else devices
    with open_device(device, known) as opened:
        options = options_on(opened.settings, options)
        place = {name: opened.place(path) for name, path in paths.items()}
        job = _job(place, opened.settings, options, precisions_of(opened.settings, paths))
        answer = _measured(opened, job, options)
    return result_of_device(device, paths, options, answer)


def _measured(device: Device, job: dict[str, Any], options: ProfileOptions) -> Answer:
    with progress.task(f"Measuring on {device.name}", 1.0) as shown:
        told = 0.0

        def report(line: Mapping[str, Any]) -> None:
            nonlocal told
            info = " ".join(str(line[key]) for key in ("stage", "model") if line[key])
            shown.advance(line["done"] - told, info)
            told = line["done"]

        return device.run_probe(job, time_limit_s=options.time_limit_s, report=report)


def named_models(models: Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    """Give each file its name; see `profile`.

    Raises:
        DeviceError: there is none, or one of them is missing.
    """
    paths = dict(models) if isinstance(models, Mapping) else _named(models)
    if not paths:
        raise DeviceError("No model to measure: give at least one ONNX file.")
    for path in paths.values():
        if not path.is_file():
            raise DeviceError(f"No model file at {path}. Give the path of an ONNX file.")
    return paths


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    stems = [path.stem for path in dict.fromkeys(paths)]
    named: dict[str, Path] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else str(path)
        # The same file twice is how to see what the machine's noise alone does.
        copies = list(named.values()).count(path)
        named[f"{name} ({copies + 1})" if copies else name] = path
    return named


def precisions_of(settings: CommonSettings, paths: Mapping[str, Path]) -> list[str]:
    """In which precision each file computes, where the runtime has to be told; else nothing."""
    if settings.runtime not in BUILT:
        return []
    return [file_precision(path) for path in paths.values()]


def _job(
    places: Mapping[str, str],
    settings: CommonSettings,
    options: ProfileOptions,
    precisions: Sequence[str],
) -> dict[str, Any]:
    asked = asdict(options)
    del asked["time_limit_s"], asked["engine"]  # the device's business, and the models'
    models: list[dict[str, Any]] = [{"name": name, "path": path} for name, path in places.items()]
    if settings.runtime in BUILT:
        # Each in the precision that its file says; a build that gives another one is refused.
        for model, precision in zip(models, precisions, strict=True):
            model["engine"] = {**options.engine, "precision": precision}
    return {
        "models": models,
        "runtime": settings.runtime,
        "power_mode": settings.power_mode,
        **asked,
    }
