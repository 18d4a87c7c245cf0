"""The path that a measurement takes, one step after the other."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from typing_extensions import Self

from prune2deploy.devices import opening
from prune2deploy.devices.base import Device
from prune2deploy.devices.setup import ask
from prune2deploy.errors import DeviceError

_STEP_LIMIT_S = 120.0
_MEASURE_LIMIT_S = 300.0
_LOCK_WAIT_S = 60.0
_MEASURE_S = 2.0

Step = tuple[str, Callable[[], str]]


class ShellTest:
    """Steps to be run in order, inside a with-block, which ends the connection.

    Each returns what there is to say of it, or raises DeviceError. On the device stays a model of
    under 1 kB, the same each time.
    """

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        self._name = name
        self._known = known
        self._there = ""
        self._device: Device

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="prune2deploy-"))
        self._model = Path(folder, "tiny.onnx")
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def steps(self) -> tuple[Step, ...]:
        return (
            ("connect, and have the probe there", self._connect),
            ("Python starts, and the probe answers", self._answer),
            ("a file goes there, and its hash comes back", self._transfer),
            ("the lock can be taken", self._lock),
            (f"a model is measured for {_MEASURE_S:g} s", self._measure),
        )

    def _connect(self) -> str:
        self._device = self._stack.enter_context(opening.open_device(self._name, self._known))
        return ""

    def _answer(self) -> str:
        self._hashes([])
        return ""

    def _hashes(self, paths: list[str]) -> dict[str, str | None]:
        job = {"ask": "files", "paths": paths}
        answer = self._device.run_probe(job, time_limit_s=_STEP_LIMIT_S, report=lambda line: None)
        found: dict[str, str | None] = answer["sha256"]
        return found

    def _transfer(self) -> str:
        write_tiny_model(self._model)
        self._there = self._device.place(self._model)
        found = self._hashes([self._there])[self._there]
        if found != hashlib.sha256(self._model.read_bytes()).hexdigest():
            raise DeviceError(
                f"Device '{self._name}': {self._there} has the hash {found} there, another one "
                "than here. Check its disk and the network."
            )
        return self._there

    def _lock(self) -> str:
        job = {"ask": "lock", "lock_wait_s": _LOCK_WAIT_S}
        answer = ask(self._device, "Taking the lock", job, _STEP_LIMIT_S)
        return f"{answer['lock']}, Python {answer['python']}"

    def _measure(self) -> str:
        settings = self._device.settings
        if settings.runtime == "torch":
            return "left out: the model is ONNX, and the runtime of this device is PyTorch"
        cores = settings.cores
        job = {
            "models": [{"name": "tiny", "path": self._there}],
            "runtime": settings.runtime,
            "threads": settings.threads,
            "spinning": settings.spinning,
            "pin": list(cores) if cores and len(cores) == settings.threads else "auto",
            "min_time_s": _MEASURE_S,
            "turn_s": 0.02,  # short ones, so that this time is enough for all its blocks
            "warmup_max_s": 3.0,
            "energy_s": 0.0,
            "lock_wait_s": _LOCK_WAIT_S,
        }
        answer = ask(self._device, "Measuring", job, _MEASURE_LIMIT_S)
        samples = [ns for turn in answer["turns"] for ns in turn["samples_ns"]]
        versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
        middle = statistics.median(samples) / 1e6
        return f"median {middle:.3g} ms of {len(samples)} runs on CPU {answer['cpus']}; {versions}"


def write_tiny_model(path: Path) -> None:
    """Write a convolution with its activation, the same bytes each time.

    Input "x" is (1, 3, 16, 16) float32, output "y" (1, 4, 16, 16).
    """
    from onnx import TensorProto, helper, save

    values = [(index % 7 - 3) / 10 for index in range(4 * 3 * 3 * 3)]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], values)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    sink = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 16])
    graph = helper.make_graph(nodes, "tiny", [source], [sink], [weight])
    # Old numbers, for an old runtime on an old Python.
    opset = [helper.make_opsetid("", 13)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=7), path)
