"""Time ONNX models on a device, side by side, and say how much faster one is than another.

The samples come from the probe, the intervals from statistics.py; this file joins the two.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from prune2deploy.latency import statistics
from prune2deploy.latency.taint import taints

if TYPE_CHECKING:
    Blocks = list[statistics.Floats]

_log = logging.getLogger(__name__)

Interval = tuple[float, float]
NVIDIA = ("tensorrt", "tensorrt_rtx")
BUILT = (*NVIDIA, "trtexec")
"""Runtimes that have to be told the precision of a file."""
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure. The defaults suit a single image on one core.

    `min_samples` is at least what a 90th percentile needs; 662 make a 99th possible. What is None,
    and `pin` "device", is as the device's entry in devices.yaml has it. `engine`: options of the
    build, of the probe's BUILD_OPTIONS, for devices with TensorRT.

    Raises:
        DeviceError: a value is out of its range.
    """

    threads: int | None = None
    pin: Literal["auto", "device"] | tuple[int, ...] | None = "device"
    spinning: bool | None = None
    batch: int | None = None
    seed: int = 0
    min_time_s: float = 5.0
    min_samples: int = 100
    min_blocks: int = 20
    turn_s: float = 0.05
    warmup_min_s: float = 0.5
    warmup_max_s: float = 10.0
    time_limit_s: float = 900.0
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        floors = {
            "threads": 1,
            "min_samples": statistics.samples_needed(0.90),
            "min_blocks": statistics.MIN_BLOCKS,
        }
        for name, floor in floors.items():
            value = getattr(self, name)
            if value is not None and value < floor:
                raise DeviceError(f"{name} is {getattr(self, name)}; give at least {floor}.")
        if self.batch is not None and self.batch < 1:
            raise DeviceError(f"batch is {self.batch}; give at least 1, or None for the model's.")
        for name in ("min_time_s", "turn_s", "warmup_min_s", "warmup_max_s", "time_limit_s"):
            if not getattr(self, name) > 0:
                raise DeviceError(f"{name} is {getattr(self, name)}; give more than 0 seconds.")


@dataclass(frozen=True)
class Latency:
    """Time of one inference of one batch, from call to return, input and output in host memory.

    `load_ms`, `first_run_ms` and the memory come from a process that did nothing else, with the
    file in the page cache. `peak_memory_mb` (10^6 bytes) is that whole process with interpreter
    and runtime; `model_memory_mb` is what it grew by. None is what could not be read. A percentile
    that the samples cannot support is None, and so is an interval; `missing` has the reasons.
    `energy_mj` is what one run takes with the machine around it, `net_energy_mj` what it takes
    above the idle machine, which noise can make negative; None where no power can be read.
    """

    name: str
    path: Path
    batch: int
    samples: int
    median_ms: float
    median_ci95_ms: Interval | None
    p90_ms: float | None
    p90_ci95_ms: Interval | None
    p95_ms: float | None
    p95_ci95_ms: Interval | None
    p99_ms: float | None
    p99_ci95_ms: Interval | None
    missing: Mapping[str, str]
    mean_ms: float
    std_ms: float
    throughput_per_s: float
    load_ms: float | None
    first_run_ms: float | None
    warmup_runs: int
    warmup_settled: bool
    peak_memory_mb: float | None
    model_memory_mb: float | None
    energy_mj: float | None
    net_energy_mj: float | None
    file_size_mb: float
    sha256: str


@dataclass(frozen=True)
class Speedup:
    """How many times faster `other` is than `baseline`, with the paired 95 % interval."""

    baseline: str
    other: str
    ratio: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True)
class ProfileResult:
    """What was measured on one device; `answer` is all that the probe said, with every sample.

    `tainted` has the reasons why the figures cannot be trusted; `attempts` is how often it was
    measured until this result, the least tainted one.
    """

    device: str
    options: ProfileOptions
    latencies: tuple[Latency, ...]
    speedups: tuple[Speedup, ...]
    answer: Answer = field(repr=False)
    tainted: tuple[str, ...] = ()
    attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and their conditions for JSON, without the single samples."""
        setup = {key: self.answer[key] for key in ("cpus", "versions", "machine", "state")}
        setup |= {key: self.answer[key] for key in ("watch",) if self.answer.get(key)}
        return {
            "device": self.device,
            "tainted": list(self.tainted),
            "attempts": self.attempts,
            "options": asdict(self.options),
            "latencies": [{**asdict(one), "path": str(one.path)} for one in self.latencies],
            "speedups": [asdict(one) for one in self.speedups],
            "setup": {
                **setup,
                "sessions": [model["setup"] for model in self.answer["models"]],
                "energy": [model.get("energy") for model in self.answer["models"]],
            },
        }


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
    return result_from_answer(device, paths, options, answer)


def options_on(settings: CommonSettings, options: ProfileOptions) -> ProfileOptions:
    """Fill in what the device decides."""
    threads = options.threads or settings.threads
    pin = options.pin
    if pin == "device":
        # CPUs that were named for another number of threads say nothing about this one.
        cores = settings.cores
        pin = cores if cores is not None and len(cores) == threads else "auto"
    spinning = settings.spinning if options.spinning is None else options.spinning
    return replace(options, threads=threads, pin=pin, spinning=spinning)


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
    from prune2deploy.latency.engines import file_precision

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


def result_from_answer(
    device: str, paths: Mapping[str, Path], options: ProfileOptions, answer: Answer
) -> ProfileResult:
    """Turn the probe's samples into figures. paths: in the order of the job's models."""
    blocks = [_samples_ms(answer["turns"], index) for index in range(len(paths))]
    latencies = tuple(
        _latency(path, facts, of_model)
        for path, facts, of_model in zip(paths.values(), answer["models"], blocks, strict=True)
    )
    for one in latencies:
        if not one.warmup_settled:
            _log.warning(
                "%s: '%s' did not settle in %g s of warm-up; its figures may drift.",
                device,
                one.name,
                options.warmup_max_s,
            )
    return ProfileResult(
        device=device,
        options=options,
        latencies=latencies,
        speedups=tuple(_speedups(list(paths), answer["turns"])),
        tainted=taints(answer, block_medians(answer["turns"], 0)),
        answer=answer,
    )


def _samples_ms(turns: Sequence[Mapping[str, Any]], model: int) -> Blocks:
    """Return one array of samples per block, in the order they were taken."""
    import numpy as np

    blocks: dict[int, list[float]] = {}
    for turn in turns:
        if turn["model"] == model:
            blocks.setdefault(turn["block"], []).extend(turn["samples_ns"])
    return [np.array(samples) / _NS_PER_MS for samples in blocks.values()]


def _latency(path: Path, facts: Mapping[str, Any], blocks: Blocks) -> Latency:
    import numpy as np

    pooled = np.concatenate(blocks)
    missing: dict[str, str] = {}
    figures: dict[str, Any] = {}
    for name, share in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        figures[f"{name}_ms"] = figures[f"{name}_ci95_ms"] = None
        needed = statistics.samples_needed(share)
        if len(pooled) < needed:
            missing[name] = f"needs {needed} samples, there are {len(pooled)}"
            continue
        percentile = statistics.percentile_of(blocks, share)
        figures[f"{name}_ms"] = percentile.value
        figures[f"{name}_ci95_ms"] = percentile.interval
        if percentile.interval is None:
            missing[f"{name}_ci95"] = "too few independent samples: measure for longer"
    shape = facts["inputs"][0]["shape"] if facts["inputs"] else []
    batch = shape[0] if shape else 1
    peak_kb, base_kb = facts["peak_memory_kb"], facts["base_memory_kb"]
    read = peak_kb is not None and base_kb is not None
    energy = facts.get("energy")
    return Latency(
        name=facts["name"],
        path=path,
        batch=batch,
        samples=len(pooled),
        missing=missing,
        mean_ms=float(pooled.mean()),
        std_ms=float(pooled.std(ddof=1)),
        throughput_per_s=batch * 1000 / float(pooled.mean()),
        load_ms=_ms(facts["load_ns"]),
        first_run_ms=_ms(facts["first_run_ns"]),
        warmup_runs=facts["warmup"]["runs"],
        warmup_settled=facts["warmup"]["settled"],
        peak_memory_mb=peak_kb * 1024 / 1e6 if read else None,
        model_memory_mb=(peak_kb - base_kb) * 1024 / 1e6 if read else None,
        energy_mj=energy["joules_per_run"] * 1000 if energy else None,
        net_energy_mj=energy["net_joules_per_run"] * 1000 if energy else None,
        file_size_mb=facts["size_bytes"] / 1e6,
        sha256=facts["sha256"],
        **figures,
    )


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / _NS_PER_MS


def _speedups(names: list[str], turns: Sequence[Mapping[str, Any]]) -> list[Speedup]:
    typical = [block_medians(turns, index) for index in range(len(names))]
    speedups = []
    for other in range(1, len(names)):
        ratio = statistics.paired_ratio(typical[0], typical[other])
        speedups.append(
            Speedup(names[0], names[other], ratio.value, ratio.low, ratio.high, ratio.blocks)
        )
    return speedups


def block_medians(turns: Sequence[Mapping[str, Any]], model: int) -> statistics.Floats:
    """Return a model's typical time in each block, in ns, shape (blocks,).

    The mean of its two turns' medians: the turns lie in mirrored places, so that a linear drift
    adds the same to every model's mean. The median of both turns together would not.
    """
    import numpy as np

    blocks: dict[int, list[float]] = {}
    for turn in turns:
        if turn["model"] == model:
            blocks.setdefault(turn["block"], []).append(float(np.median(turn["samples_ns"])))
    return np.array([np.mean(medians) for medians in blocks.values()])
