"""Have a device time layers in the widths that are needed."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import Device
from prune2deploy.devices.features import features_of
from prune2deploy.errors import DeviceError
from prune2deploy.latency.options import ProfileOptions, options_on
from prune2deploy.latency.staircase.grid import Extent, grid, refined, step_of
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Profiler, Table, load_table, table_path
from prune2deploy.latency.staircase.tiny import Point, weight_bytes, write_chain, write_layers

log = logging.getLogger(__name__)

_BRANCH = re.compile(r"^(?:fused )?(layer\d+)(?:\D|$)")
_PAIR = re.compile(r"^(?:fused )?(before|layer)0(?:\D|$)")  # of a change of layout
_MAX_WEIGHTS = 128 << 20  # of one file, once the device has made them
_MAX_BRANCHES = 120
_RUNS = 15
_FACTS_LIMIT_S = 300.0
_FILE_LIMIT_S = 900.0
_REFINEMENTS = 2
_CHAINS = (20, 120)  # layers
_OF_CHAINS = (16, (4, 4))  # channels and image: all of it is in the smallest cache
_SCANNED = range(33, 65)
_OTHER = 64
# One image of a middle layer: what steps a runtime has is a matter of its kernels.
_SCANS = (
    LayerSpec("conv", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14)),
    LayerSpec("conv", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (28, 28)),
)


def open_table(device: Device, options: ProfileOptions, path: Path | None = None) -> Table:
    """Return the table of a device as it is now. path: None is the place in the user's cache.

    Raises:
        DeviceError: the device or the file is of no use.
    """
    options = options_on(device.settings, options)
    facts = device.run_probe({"ask": "facts"}, time_limit_s=_FACTS_LIMIT_S, report=_ignore)
    runtime = device.settings.runtime
    versions = facts["runtimes"][runtime]["versions"]
    if versions is None:
        raise DeviceError(
            f"Device '{device.name}': {facts['runtimes'][runtime]['message']}. "
            f"See: prune2deploy devices check {device.name}"
        )
    conditions = conditions_of(facts["machine"], runtime, versions[runtime], options)
    return load_table(path or table_path(conditions), conditions)


def conditions_of(
    machine: Mapping[str, Any], runtime: str, version: str, options: ProfileOptions
) -> dict[str, Any]:
    """Return what must be the same for times to hold. options: with the device's filled in."""
    return {
        "cpu": machine["cpu_model"],
        # A virtual machine may say no more than "AMD EPYC" of processors with other vectors.
        "features": [name for name, there in features_of(machine).items() if there],
        "board": machine["board"],
        "architecture": machine["architecture"],
        "runtime": runtime,
        "version": version,
        "threads": options.threads,
        "spinning": options.spinning,
    }


def prepare(table: Table, device: Device, options: ProfileOptions) -> None:
    """Find out what holds for all layers of a device, where its table does not say it.

    Raises:
        DeviceError: a measurement failed.
    """
    options = options_on(device.settings, options)
    if table.profiler is None:
        table.profiler = _profiler(device, options)
        log.info("%s: %s", device.name, table.profiler)
        table.save()
    if table.step is None:
        _look_for_steps(table, device, options)


def fill(
    table: Table,
    device: Device,
    options: ProfileOptions,
    layers: Mapping[LayerSpec, Sequence[Extent]],
) -> None:
    """Measure what a table lacks, and write it down after every piece.

    table: a prepared one. layers: what there is. Interrupted, it goes on where it was.

    Raises:
        DeviceError: a measurement failed; what was measured before is kept.
    """
    options = options_on(device.settings, options)
    assert table.step is not None
    pieces = {s: table.missing(s, grid(s, some, table.step)) for s, some in layers.items()}
    with progress.task(f"Timing layers on {device.name}", len(layers)) as shown:
        for spec, points in pieces.items():
            _measure(table, device, options, spec, points)
            for _ in range(_REFINEMENTS):
                more = refined(spec, table.times.get(spec.key, {}), table.step)
                if not points or not more:  # a table that was there is as fine as it was made
                    break
                _measure(table, device, options, spec, more)
            shown.advance(1, spec.key)


def _profiler(device: Device, options: ProfileOptions) -> Profiler:
    """What the profiler adds, by two networks that differ in their number of nodes only.

    They hardly compute anything, so that it is the most of their time. In any other network it is
    a small difference of two long times.
    """
    with tempfile.TemporaryDirectory(prefix="prune2deploy-layers-") as folder:
        places = []
        for length in _CHAINS:
            path = Path(folder, f"chain{length}.onnx")
            write_chain(path, length, *_OF_CHAINS)
            places.append(device.place(path))
        job = _job(device, options, *places)
        answer = device.run_probe(job, time_limit_s=_FILE_LIMIT_S, report=_ignore)
    counts, beside, inside = [], [], []
    for facts in answer["models"]:
        counts.append(len(facts["nodes"]))
        beside.append(facts["outside_nodes_us"]["median"])
        run = facts["profiled_run_us"]["median"] - beside[-1]
        inside.append(run - facts["plain_run_us"]["median"])
    more = max(1, counts[1] - counts[0])
    return Profiler(*(max(0.0, (us[1] - us[0]) / more) for us in (inside, beside)))


def _look_for_steps(table: Table, device: Device, options: ProfileOptions) -> None:
    steps = []
    with progress.task(f"Looking for steps on {device.name}", len(_SCANS)) as shown:
        for spec in _SCANS:
            outward = [(_OTHER, width) for width in _SCANNED]
            inward = [(width, _OTHER) for width in _SCANNED]
            _measure(table, device, options, spec, table.missing(spec, [*outward, *inward]))
            times = table.times[spec.key]
            steps.append(step_of({b: times[a, b] for a, b in outward}))
            steps.append(step_of({a: times[a, b] for a, b in inward}))
            shown.advance(1, spec.key)
    # A width must be on the good side of every step; one scan alone may have been disturbed.
    table.step = sorted(steps)[-2]
    log.info("%s: widths are worth having every %d channels (%s)", device.name, table.step, steps)
    table.save()


def _measure(
    table: Table, device: Device, options: ProfileOptions, spec: LayerSpec, points: Sequence[Point]
) -> None:
    for some in _files(spec, points):
        with tempfile.TemporaryDirectory(prefix="prune2deploy-layers-") as folder:
            path = Path(folder, "layers.onnx")
            branches = write_layers(path, spec, some)
            job = _job(device, options, device.place(path))
            answer = device.run_probe(job, time_limit_s=_FILE_LIMIT_S, report=_ignore)
        table.add(spec, _times(answer["models"][0]["nodes"], branches, spec))
        table.save()


def _files(spec: LayerSpec, points: Sequence[Point]) -> Iterator[list[Point]]:
    """Share points among files that no device is overburdened with."""
    some: list[Point] = []
    size = 0
    for point in points:
        own = weight_bytes(spec, point)
        if some and (size + own > _MAX_WEIGHTS or len(some) == _MAX_BRANCHES):
            yield some
            some, size = [], 0
        some.append(point)
        size += own
    if some:
        yield some


def _job(device: Device, options: ProfileOptions, *places: str) -> dict[str, Any]:
    taken = ("threads", "pin", "spinning", "seed")
    return {
        "ask": "layers",
        "models": [{"name": f"layers {n}", "path": path} for n, path in enumerate(places)],
        "runtime": device.settings.runtime,
        "runs": _RUNS,
        "min_time_s": 0.2,
        "warmup_min_s": 0.1,
        "warmup_max_s": 1.0,
        **{name: getattr(options, name) for name in taken},
    }


def _times(
    nodes: Sequence[Mapping[str, Any]], branches: Mapping[str, Point], spec: LayerSpec
) -> dict[Point, float]:
    """The layers' own times; what the runtime puts around them is no part of a layer."""
    if spec.kind == "layout":
        return dict.fromkeys(branches.values(), _between(nodes))
    found: dict[Point, float] = {}
    for node in nodes:
        match = _BRANCH.match(node["name"])
        if match and ("Conv" in node["op"] or "MatMul" in node["op"] or "Gemm" in node["op"]):
            point = branches[match[1]]
            found[point] = found.get(point, 0.0) + node["median"]
    if len(found) != len(branches):
        raise DeviceError(
            f"Of {len(branches)} widths of '{spec.key}', {len(found)} are in the runtime's "
            "profile. Please report this with the runtime's version."
        )
    return found


def _between(nodes: Sequence[Mapping[str, Any]]) -> float:
    """What the runtime put between the two layers; nothing where the second reads the first's."""
    places = {"before": len(nodes), "layer": len(nodes)}
    for place, node in enumerate(nodes):
        match = _PAIR.match(node["name"])
        if match and "Conv" in node["op"]:
            places[match[1]] = min(place, places[match[1]])
    return sum(float(node["median"]) for node in nodes[places["before"] + 1 : places["layer"]])


def _ignore(line: Mapping[str, Any]) -> None:
    """What single small files are at is of no interest."""
