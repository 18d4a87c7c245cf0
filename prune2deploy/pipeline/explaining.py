"""Explain a finished run: find its files and what was measured, profile both networks again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune2deploy.devices import Devices
from prune2deploy.errors import DeviceError, RecipeError
from prune2deploy.latency import ProfileOptions, profile_layers
from prune2deploy.latency.explain import Explanation, Measured, explain
from prune2deploy.latency.layers import LayersResult
from prune2deploy.latency.results import ProfileResult, result_from_answer
from prune2deploy.latency.staircase.measure import conditions_of
from prune2deploy.latency.staircase.table import load_table, table_path
from prune2deploy.pipeline import folder as files
from prune2deploy.recipe import parse_recipe

_RUNTIME = "onnxruntime"  # the one that can tell how long its layers take


def explain_run(
    folder: Path,
    device: str | None = None,
    *,
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
) -> Explanation:
    """Profile a run's two networks layer by layer and split the time that was not saved.

    Args:
        folder: of a finished run.
        device: None is the one that the run was measured on, or this machine if on none.
        options: None is as the run was measured there.

    Raises:
        RecipeError: it is no folder of a run, or was measured on several devices.
        DeviceError: the device is not known, cannot be reached, or gives no times of layers.
    """
    models = _models(folder)
    device = device or _only_device(folder)
    kept = _kept(folder / files.LATENCY / f"{device}.json", models, device)
    options = options or (kept.options if kept else None)
    result = profile_layers(models, device=device, options=options, devices=devices)
    return explain(result, _measured(kept), _known_step(result), timed=_was_timed(folder))


def _models(folder: Path) -> dict[str, Path]:
    models = {name: folder / file for name, file in files.ONNX.items()}
    wanted = [folder / files.METRICS, *models.values()]
    missing = [path.name for path in wanted if not path.is_file()]
    if missing:
        raise RecipeError(
            f"{folder} is no folder of a finished run: it has no {', no '.join(missing)}. Name "
            "what `prune2deploy run` said everything is in, such as runs/NAME."
        )
    return models


def _was_timed(folder: Path) -> bool:
    path = folder / files.RECIPE
    if not path.is_file():
        return False
    try:
        recipe = parse_recipe(path.read_text(encoding="utf-8"), path)
    except RecipeError:
        return False  # of another version, perhaps; only one sentence of advice goes by it
    return recipe.prune.budget.timed


def _only_device(folder: Path) -> str:
    found = sorted(path.stem for path in (folder / files.LATENCY).glob("*.json"))
    if len(found) > 1:
        raise RecipeError(
            f"{folder} was measured on {', '.join(found)}. Choose one with --on, such as "
            f"--on {found[0]}."
        )
    return found[0] if found else "local"


def _kept(path: Path, models: Mapping[str, Path], device: str) -> ProfileResult | None:
    """Read what was measured of the run's files; None where nothing was."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        hashes = [one["sha256"] for one in record["models"]]
        # Behind these two a run may have measured files in lower precisions.
        same = hashes[: len(models)] == [files.sha256_of(one) for one in models.values()]
        measured = record["answer"]["models"][: len(models)]
        facts = [{**one, "name": name} for one, name in zip(measured, models, strict=True)]
        result = result_from_answer(
            device, models, _options(record["options"]), {**record["answer"], "models": facts}
        )
        tainted = tuple(record["tainted"])
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise RecipeError(
            f"{path} is damaged, or no result of this program ({type(err).__name__}: {err}). "
            "Remove it, and the profile's own times are taken."
        ) from err
    if not same:
        raise RecipeError(
            f"{path} was measured with other files than those in the folder. Measure them again: "
            f"prune2deploy profile {' '.join(str(one) for one in models.values())} --on {device} "
            f"--output {path.parent.parent}"
        )
    return ProfileResult(
        result.device, result.options, result.latencies, result.speedups, result.answer, tainted
    )


def _options(plain: Mapping[str, Any]) -> ProfileOptions:
    pin = plain.get("pin", "device")
    return ProfileOptions(**{**plain, "pin": tuple(pin) if isinstance(pin, list) else pin})


def _measured(kept: ProfileResult | None) -> Measured | None:
    if kept is None or not kept.speedups or kept.latencies[0].median_ms is None:
        return None
    return Measured(kept.latencies[0].median_ms, kept.speedups[0].ratio, kept.tainted)


def _known_step(result: LayersResult) -> int | None:
    """Return the step of the device's table of layer times, if there is one."""
    version = result.answer["versions"].get(_RUNTIME)
    conditions = conditions_of(result.answer["machine"], _RUNTIME, version, result.options)
    try:
        return load_table(table_path(conditions), conditions).step
    except DeviceError:
        return None  # damaged: the runtime's own padding is looked at instead
