"""Read the folder of a finished run, and write its report.html or a page that compares runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prune2deploy.errors import RecipeError
from prune2deploy.latency.explain_nodes import FileCost, read_costs
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.report.html import compare_page, run_page
from prune2deploy.report.html.contents import (
    Input,
    LayerPair,
    RunContents,
    SearchFront,
    SearchPoint,
    TimedLayer,
)
from prune2deploy.report.metrics import SCHEMA_VERSION, Metrics

MARK = b'<meta name="generator" content="prune2deploy">'
"""What every page of ours has near its beginning."""

_NS_PER_MS = 1e6
_T = TypeVar("_T")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Make a run's page from what is in its folder, and nothing else.

    output: None is report.html in the folder.

    Raises:
        RecipeError: it is no folder of a finished run, or of another version of this program, or
            the page cannot be written there.
    """
    if output is None:
        output = folder / files.REPORT
    else:
        _check_place(output)
    return _written(output, run_page(read_run(folder)))


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Make one page that compares runs.

    Raises:
        RecipeError: as write_report, a folder is named twice, or metrics differ.
    """
    paths = [folder.resolve() for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise RecipeError(f"{twice} is named twice. Name each run once.")
    _check_place(output)
    return _written(output, compare_page([read_run(folder) for folder in folders]))


def _written(output: Path, page: str) -> Path:
    return RunFolder(output.absolute().parent).write(output.name, page)


def _check_place(output: Path) -> None:
    """Refuse what is no page, and what is a page or a file of somebody else."""
    if output.suffix.lower() != ".html" or not output.absolute().parent.is_dir():
        raise RecipeError(
            f"--output {output} should be a file that ends in .html, in a folder that exists."
        )
    if output.exists() and (output.is_dir() or MARK not in output.read_bytes()[:4096]):
        raise RecipeError(
            f"--output {output} is there, and no page of prune2deploy. Name another file."
        )


def read_run(folder: Path) -> RunContents:
    """Read all that a report tells of. What is damaged or not there is named in `absent`.

    Raises:
        RecipeError: metrics.json is not there or cannot be read.
    """
    metrics = _metrics(folder)
    absent: list[str] = []
    latency = {one["device"]: _latency(folder, one, absent) for one in metrics.latency}
    recipe = _tried(folder / files.RECIPE, _text, absent, "the recipe")
    facts: Mapping[str, Any] = next((one for one in latency.values() if one), {})
    return RunContents(
        folder=folder.resolve().name,
        metrics=metrics,
        recipe=recipe,
        samples={name: one["samples"] for name, one in latency.items() if one},
        measured={name: one["measured"] for name, one in latency.items() if one},
        layers=_layers(folder, absent),
        layer_times=_layer_times(folder, metrics, absent),
        search=_search(folder, absent),
        inputs=facts.get("inputs", ()),
        absent=tuple(absent),
    )


def _metrics(folder: Path) -> Metrics:
    path = folder / files.METRICS
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {folder}. {_NAME_ONE}")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise RecipeError(
            f"{folder} is no folder of a finished run: it has no {files.METRICS}. {_NAME_ONE}"
        ) from err
    except ValueError as err:
        raise RecipeError(f"{path} is damaged: {err}. {_AGAIN}") from err
    found = plain.get("schema_version") if isinstance(plain, dict) else None
    if found != SCHEMA_VERSION:
        raise RecipeError(
            f"{path} has schema version {found}, and this version of prune2deploy reads "
            f"{SCHEMA_VERSION}. Make the report with the version that made the run, or {_RUN_IT}."
        )
    try:
        return Metrics.model_validate(plain)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{path} is damaged: {where}: {first['msg']}. {_AGAIN}") from err


_NAME_ONE = (
    "Name what `prune2deploy run` said everything is in, such as runs/NAME; "
    "`prune2deploy runs list` shows those that there are."
)
_RUN_IT = "run the recipe again into another folder"
_AGAIN = "To make it anew, " + _RUN_IT + "."


def _tried(
    path: Path, read: Callable[[Path], _T], absent: list[str], what: str, *, told: bool = True
) -> _T | None:
    """Read a file; if it is not there or damaged, say so in `absent` and return None.

    told: whether a file that is not there is worth a word.
    """
    name = (
        path.name
        if path.parent.name not in (files.LATENCY, files.LAYERS)
        else (f"{path.parent.name}/{path.name}")
    )
    try:
        return read(path)
    except FileNotFoundError:
        if told:
            absent.append(f"{name} is not in the folder: {what} cannot be shown.")
    except Exception as err:
        # A report of the rest is better than none, and this one says what it lacks.
        absent.append(f"{name} is damaged ({type(err).__name__}: {err}): {what} cannot be shown.")
    return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _latency(folder: Path, measured: Mapping[str, Any], absent: list[str]) -> dict[str, Any] | None:
    """The file of a device, if its models are those of metrics.json."""
    path = folder / files.LATENCY / f"{measured['device']}.json"

    def read(path: Path) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(_text(path))
        hashes = [one["sha256"] for one in record["models"]]
        if hashes[: len(measured["latencies"])] != [one["sha256"] for one in measured["latencies"]]:
            raise ValueError("it is of other files than the run's")
        return {
            "measured": str(record["measured"]),
            "samples": _samples(record),
            "inputs": _inputs(record),
        }

    return _tried(path, read, absent, f"the distribution of the times on {measured['device']}")


def _samples(record: Mapping[str, Any]) -> dict[str, list[float]]:
    names = [one["name"] for one in record["models"]]
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in record["answer"]["turns"]:
        found[names[turn["model"]]] += [ns / _NS_PER_MS for ns in turn["samples_ns"]]
    return {name: times for name, times in found.items() if times}


def _inputs(record: Mapping[str, Any]) -> tuple[Input, ...]:
    found = record["answer"]["models"][0]["inputs"]
    return tuple(
        Input(str(one["name"]), str(one["dtype"]), tuple(one["shape"]))
        for one in found
        if {"name", "dtype"} <= one.keys()
    )


def _layers(folder: Path, absent: list[str]) -> tuple[LayerPair, ...] | None:
    what = "what its layers cost"
    costs = [_tried(folder / name, read_costs, absent, what) for name in files.ONNX.values()]
    before, after = costs
    if before is None or after is None:
        return None
    # The order of the original, then what only the pruned network has.
    keys = dict.fromkeys([*before, *after])
    return tuple(_pair(before.get(key), after.get(key)) for key in keys)


def _pair(old: FileCost | None, new: FileCost | None) -> LayerPair:
    either = old or new
    assert either is not None
    return LayerPair(
        either.name,
        either.operator,
        macs=(old.macs if old else None, new.macs if new else None),
        params=(old.params if old else None, new.params if new else None),
    )


def _layer_times(
    folder: Path, metrics: Metrics, absent: list[str]
) -> dict[str, tuple[TimedLayer, ...]]:
    """Times of layers by device, from what `profile --layers --output` left."""
    hashes = [record.sha256 for name in files.ONNX.values() if (record := metrics.files.get(name))]

    def read(path: Path) -> tuple[TimedLayer, ...]:
        return _timed(json.loads(_text(path)), hashes)

    found = {}
    for path in sorted((folder / files.LAYERS).glob("*.json")):
        rows = _tried(path, read, absent, "the times of its layers")
        if rows:
            found[path.stem] = rows
    return found


def _timed(record: Mapping[str, Any], hashes: Sequence[str]) -> tuple[TimedLayer, ...]:
    if not set(hashes) <= set(record["sha256"]):
        raise ValueError("it is of other files than the run's")
    places = [record["sha256"].index(one) for one in hashes]
    rows = []
    for one in record["layers"]:
        old, new = (one["times"][place] for place in places)
        pair = (old and float(old["median_ms"]), new and float(new["median_ms"]))
        rows.append(TimedLayer(str(one["name"]), str(one["operator"]), pair))
    return tuple(rows)


def _search(folder: Path, absent: list[str]) -> SearchFront | None:
    return _tried(folder / files.SEARCH, _front, absent, "the search", told=False)


def _front(path: Path) -> SearchFront:
    """Take the points from search.json, whatever else a version of it holds."""
    record = json.loads(_text(path))
    cost = record["cost"]
    where = f" on {cost['device']}" if cost.get("device") else ""
    name = {"macs": "MACs", "params": "parameters", "latency": "latency, ms"}
    told = ""
    if "judged_on" in record:
        told = f"Judged on {record.get('images', '?')} {record['judged_on']} images, untrained."
    original = record.get("original")
    return SearchFront(
        axis=name.get(cost["name"], str(cost["name"])) + where,
        metric=str(record["metric"]),
        front=tuple(map(_point, record["front"])),
        tried=tuple(map(_point, record.get("tried", ()))),
        original=None if original is None else _point(original),
        judged=told,
    )


def _point(one: Mapping[str, Any]) -> SearchPoint:
    told = str(one["number"]) if "number" in one else ""
    if one.get("start"):
        told = f"{told} ({one['start']})".strip()
    return SearchPoint(float(one["accuracy"]), float(one["cost"]), told)
