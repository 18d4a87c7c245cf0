"""Where models spend their time, layer by layer: for comparing layers, not for latencies.

The probe profiles each model on the device; layer_names.py says which of the file's layers each
node was, and layers of the same name stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import Answer, CommonSettings, Devices, load_devices, open_device
from prune2deploy.latency.layer_names import FileGraph, Key, channels_of, read_graph
from prune2deploy.latency.options import ProfileOptions, options_on
from prune2deploy.latency.profile import named_models

__all__ = ["Layer", "LayerTime", "LayersResult", "ModelRuns", "profile_layers"]

_US_PER_MS = 1e3


@dataclass(frozen=True)
class LayerTime:
    """A layer's time in one model, under the profiler: median and quartiles over the runs.

    channels are those of the output in the file; run_channels are those that the runtime computed,
    which may pad them. None where the shape is not known. nodes: names of what was executed.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    operator: str
    channels: int | None
    run_channels: int | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """The same layer in all models; None where a model has none, or does not run it by itself."""

    name: str
    times: tuple[LayerTime | None, ...]

    @property
    def operator(self) -> str:
        """What it computes; where the models differ, one after the other."""
        return " → ".join(dict.fromkeys(one.operator for one in self.times if one is not None))


@dataclass(frozen=True)
class ModelRuns:
    """A whole model: medians in ms over `runs` runs, without the profiler (plain) and with it.

    nodes_ms is the sum of the nodes' medians; outside_ms is what a run took outside its nodes.
    """

    name: str
    path: Path
    runs: int
    plain_ms: float
    profiled_ms: float
    nodes_ms: float
    outside_ms: float


@dataclass(frozen=True)
class LayersResult:
    """layers: in order of execution. added: what the runtime put in itself, by operator."""

    device: str
    options: ProfileOptions
    models: tuple[ModelRuns, ...]
    layers: tuple[Layer, ...]
    added: tuple[Layer, ...]
    answer: Answer = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and their conditions for JSON."""
        return {
            "device": self.device,
            "threads": self.options.threads,
            "models": [{**asdict(one), "path": str(one.path)} for one in self.models],
            "layers": [{"operator": one.operator, **asdict(one)} for one in self.layers],
            "added_by_the_runtime": [asdict(one) for one in self.added],
            "setup": {key: self.answer[key] for key in ("versions", "machine", "state")},
        }


def profile_layers(
    models: Sequence[Path] | Mapping[str, Path],
    *,
    device: str = "local",
    options: ProfileOptions | None = None,
    devices: Devices | None = None,
) -> LayersResult:
    """Profile ONNX files one after the other on a device, and match their layers.

    Args:
        models, device, devices: as for `profile`; the first file is what others are compared with.
        options: `min_time_s` is for each model, half of it under the profiler, and 50 runs at
            least; `min_samples`, `min_blocks` and `turn_s` mean nothing here.

    Raises:
        DeviceError: as `profile` does, or the device does not run ONNX files on its CPU.
    """
    options = options or ProfileOptions()
    paths = named_models(models)
    with open_device(device, load_devices() if devices is None else devices) as opened:
        options = options_on(opened.settings, options)
        places = {name: opened.place(path) for name, path in paths.items()}
        with progress.task(f"Timing layers on {device}", 1.0) as shown:
            told = 0.0

            def report(line: Mapping[str, Any]) -> None:
                nonlocal told
                shown.advance(line["done"] - told, line["model"])
                told = line["done"]

            answer = opened.run_probe(
                _job(places, opened.settings, options),
                time_limit_s=options.time_limit_s,
                report=report,
            )
    return layers_from_answer(device, paths, options, answer)


def _job(
    places: Mapping[str, str], settings: CommonSettings, options: ProfileOptions
) -> dict[str, Any]:
    taken = ("threads", "pin", "spinning", "batch", "seed", "warmup_min_s", "warmup_max_s")
    return {
        "ask": "layers",
        "models": [{"name": name, "path": path} for name, path in places.items()],
        "runtime": settings.runtime,
        "min_time_s": options.min_time_s / 2,
        **{name: getattr(options, name) for name in taken},
    }


def layers_from_answer(
    device: str, paths: Mapping[str, Path], options: ProfileOptions, answer: Answer
) -> LayersResult:
    """Turn the probe's nodes into layers. paths: in the order of the job's models."""
    known, added = [], []
    for path, facts in zip(paths.values(), answer["models"], strict=True):
        of_file, of_runtime = _of_model(read_graph(path), facts["nodes"])
        known.append(of_file)
        added.append(of_runtime)
    return LayersResult(
        device=device,
        options=options,
        models=tuple(
            _model_runs(name, path, facts)
            for (name, path), facts in zip(paths.items(), answer["models"], strict=True)
        ),
        layers=_side_by_side(known),
        added=_side_by_side(added),
        answer=answer,
    )


def _model_runs(name: str, path: Path, facts: Mapping[str, Any]) -> ModelRuns:
    return ModelRuns(
        name=name,
        path=path,
        runs=facts["runs"],
        plain_ms=facts["plain_run_us"]["median"] / _US_PER_MS,
        profiled_ms=facts["profiled_run_us"]["median"] / _US_PER_MS,
        nodes_ms=math.fsum(node["median"] for node in facts["nodes"]) / _US_PER_MS,
        outside_ms=facts["outside_nodes_us"]["median"] / _US_PER_MS,
    )


Named = dict[Key, tuple[str, LayerTime]]


def times_of_nodes(graph: FileGraph, executed: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Share the runtime's time among the nodes of a file; what it added is left out.

    executed: of the probe's answer.

    Returns:
        µs by the place of a node, whose time includes what was fused into it.
    """
    times: dict[int, float] = {}
    for node in executed:
        place = graph.origin(node)
        if place is not None:
            times[place] = times.get(place, 0.0) + node["median"]
    return times


def _of_model(graph: FileGraph, executed: Sequence[Mapping[str, Any]]) -> tuple[Named, Named]:
    """Return a model's layers by key in order of execution, and what the runtime added."""
    origins = [graph.origin(node) for node in executed]
    fused = graph.absorbed(origins)
    parts: dict[Key, list[Mapping[str, Any]]] = {}
    places: dict[Key, int] = {}
    extra: dict[Key, list[Mapping[str, Any]]] = {}
    for node, place in zip(executed, origins, strict=True):
        if place is None:
            # Without the file's names, each node stands for itself.
            key = ("", node["op"] if graph.nodes else node["name"], 0)
            (extra if graph.nodes else parts).setdefault(key, []).append(node)
        else:
            key = graph.nodes[place].key
            places[key] = place
            parts.setdefault(key, []).append(node)
    layers: Named = {}
    for key, nodes in parts.items():
        if key not in places:
            layers[key] = (nodes[0]["name"], _time(nodes, nodes[0]["op"], None, None))
            continue
        origin = graph.nodes[places[key]]
        operator = "+".join([origin.op, *fused.get(places[key], [])])
        layers[key] = (origin.layer, _time(nodes, operator, origin.axis, origin.channels))
    added = {
        key: (f"{key[1]} ×{len(nodes)}", _time(nodes, key[1], None, None))
        for key, nodes in extra.items()
    }
    return layers, added


def _time(
    nodes: Sequence[Mapping[str, Any]], operator: str, axis: int | None, channels: int | None
) -> LayerTime:
    def total(name: str) -> float:
        return math.fsum(node[name] for node in nodes) / _US_PER_MS

    shapes = nodes[-1]["output_shapes"]
    run_channels = channels_of(shapes[0]["shape"], axis) if shapes else None
    return LayerTime(
        median_ms=total("median"),
        q1_ms=total("q1"),
        q3_ms=total("q3"),
        operator=operator,
        channels=run_channels if channels is None else channels,
        run_channels=run_channels,
        nodes=tuple(node["name"] for node in nodes),
    )


def _side_by_side(models: Sequence[Named]) -> tuple[Layer, ...]:
    """Merge the models' layers; what the first has not follows what it follows in its own model."""
    order: list[Key] = []
    for layers in models:
        place = 0
        for key in layers:
            if key in order:
                place = order.index(key) + 1
            else:
                order.insert(place, key)
                place += 1
    merged = []
    for key in order:
        found = [layers.get(key) for layers in models]
        name = next(one[0] for one in found if one is not None)
        merged.append(Layer(name, tuple(None if one is None else one[1] for one in found)))
    return tuple(merged)
