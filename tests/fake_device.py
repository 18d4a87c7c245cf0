"""A device that never ran anything: its times follow from the file, by a known staircase."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import platformdirs
from fake_profile import fake_answer
from typing_extensions import Self

from prune2deploy.devices import Devices, LocalSettings
from prune2deploy.latency import ProfileOptions

OUTSIDE_US = 40.0  # what a run takes beside its nodes
BASE_KB = 60_000  # of a process without a network
_WEIGHTY = ("Conv", "Gemm", "MatMul")
_BLOCKS = 12
_SECONDS = ProfileOptions().min_time_s  # that so many blocks take
_CROWD = 64  # channels in and out
_TINY = ("layers", "chain")


def node_times(
    path: Path, step: int, narrow: float = 1.0, crowded: float = 1.0
) -> list[tuple[onnx.NodeProto, float]]:
    """µs of each node: layers by widths rounded up to the step, others by their channels."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {one.name: list(one.dims) for one in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type == "Constant":
            continue
        out = shapes.get(node.output[0], [])
        channels = out[1] if len(out) > 1 else 1
        us = 0.01 * channels
        if node.op_type in _WEIGHTY:
            image = shapes[node.input[0]]
            inside = image[1]
            area = math.prod(out[2:]) * math.prod(shapes[node.input[1]][2:])
            steps = math.ceil(inside / step) * math.ceil(channels / step)
            steps *= narrow if inside <= step // 2 else 1.0
            us = 1.0 + 0.05 * area * steps
            if min(inside, channels) > _CROWD and not path.stem.startswith(_TINY):
                us *= crowded
        found.append((node, us))
    return found


@dataclass
class FakeDevice:
    """One device.

    step: of its staircase. strain: how much slower than the sum of its layers a network is that
    has lost everything, as a share; it is what a prediction gets wrong. noise: of single samples.
    restless: of whole turns; then there are the more of them the longer is measured. profiled: the
    whole networks that were timed, in order, as µs. memory: KB that a file takes beyond BASE_KB;
    None: the device does not tell. narrow: share of the time that a layer takes whose input is at
    most half a step. crowded: how much longer than alone a layer with many channels takes in a
    whole network, which does not fit into the cache.
    """

    name: str = "local"
    step: int = 16
    strain: float = 0.0
    noise: float = 0.002
    restless: float = 0.0
    narrow: float = 1.0
    crowded: float = 1.0
    memory: Callable[[Path], float] | None = None
    drift: Callable[[int], float] = lambda number: 1.0
    settings: LocalSettings = field(default_factory=LocalSettings)
    profiled: list[float] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    _whole: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def place(self, path: Path) -> str:
        return str(path)

    def _times(self, path: Path) -> list[tuple[onnx.NodeProto, float]]:
        return node_times(path, self.step, self.narrow, self.crowded)

    def network_us(self, path: Path) -> float:
        """A whole network's true time; the first that is asked for is the original."""
        total = sum(us for _, us in self._times(path))
        if self._whole is None:
            self._whole = total
        return (total + OUTSIDE_US) * (1 + self.strain * (1 - total / self._whole))

    def run_probe(self, job: Mapping[str, Any], *, time_limit_s: float, report: object) -> Any:
        self.jobs.append(job.get("ask", "profile"))
        if job.get("ask") == "facts":
            versions = {"versions": {"onnxruntime": "9.9"}, "message": "there"}
            machine = {"cpu_model": self.name, "board": None, "architecture": "made up"}
            return {"runtimes": {"onnxruntime": versions}, "machine": machine}
        paths = {model["name"]: Path(model["path"]) for model in job["models"]}
        if job.get("ask") == "layers":
            return {"models": [self._layers(path) for path in paths.values()]}
        return self._turns(paths, job["min_time_s"])

    def _layers(self, path: Path) -> dict[str, Any]:
        same = {"inputs": None, "outputs": None, "output_shapes": None}
        nodes = [
            {"name": node.name, "op": node.op_type, "index": n, "median": us, "q1": us, "q3": us}
            for n, (node, us) in enumerate(self._times(path))
        ]
        whole = {"median": self.network_us(path) if not path.stem.startswith(_TINY) else 1.0}
        return {
            "nodes": [{**node, **same} for node in nodes],
            "runs": 50,
            "plain_run_us": whole,
            "profiled_run_us": whole,
            "outside_nodes_us": {"median": OUTSIDE_US},
        }

    def _turns(self, paths: Mapping[str, Path], seconds: float) -> dict[str, Any]:
        times = [self.network_us(path) for path in paths.values()]
        slower = self.drift(len(self.profiled))
        self.profiled.append(times[-1])
        random = np.random.default_rng(len(self.profiled))
        blocks = round(_BLOCKS * seconds / _SECONDS) if self.restless else _BLOCKS
        turns = [
            {
                "block": block,
                "model": model,
                "samples_ns": (
                    us
                    * 1000
                    * slower
                    * (1 + self.restless * random.standard_normal())
                    * (1 + self.noise * random.standard_normal(10))
                ).tolist(),
            }
            for block in range(blocks)
            for model, us in [*enumerate(times), *reversed([*enumerate(times)])]
        ]
        answer = {**fake_answer(paths), "turns": turns}
        for model, path in zip(answer["models"], paths.values(), strict=True):
            if self.memory is not None:
                model["base_memory_kb"] = BASE_KB
                model["peak_memory_kb"] = round(BASE_KB + self.memory(path))
        return answer


@dataclass
class FakeDevices:
    """Several of them, and the places that open devices."""

    known: dict[str, FakeDevice]

    @property
    def settings(self) -> Devices:
        return {name: device.settings for name, device in self.known.items()}

    def open(self, name: str, known: Devices) -> FakeDevice:
        assert name in known
        return self.known[name]


_PLACES = (
    "prune2deploy.latency.profile",
    "prune2deploy.latency.layers",
    "prune2deploy.planning.timed.target",
)


def fake_devices(monkeypatch: Any, cache: Path, *devices: FakeDevice) -> FakeDevices:
    """Put them where devices are opened, and tables into an empty folder."""
    found = FakeDevices({device.name: device for device in devices})
    for place in _PLACES:
        monkeypatch.setattr(importlib.import_module(place), "open_device", found.open)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: cache)
    return found
