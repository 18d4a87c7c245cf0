"""What was measured: the probe's samples as figures with intervals, by statistics.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune2deploy.devices import Answer
from prune2deploy.errors import DeviceError
from prune2deploy.latency import statistics
from prune2deploy.latency.options import ProfileOptions
from prune2deploy.latency.taint import taints

if TYPE_CHECKING:
    Blocks = list[statistics.Floats]

_log = logging.getLogger(__name__)

Interval = tuple[float, float]
_NS_PER_MS = 1e6


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


def result_of_device(
    device: str, paths: Mapping[str, Path], options: ProfileOptions, answer: Answer
) -> ProfileResult:
    """Turn the answer of a device, which may say anything, into figures.

    Raises:
        DeviceError: it is not what a probe of ours answers.
    """
    try:
        return result_from_answer(device, paths, options, answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as err:
        raise DeviceError(
            f"Device '{device}' gave an answer that is not one of our probe "
            f"({type(err).__name__}: {str(err)[:200]}). Measure again; if it stays so, look at "
            "what runs there with: prune2deploy devices shell-test"
        ) from err


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
    found = [np.array(samples, np.float64) / _NS_PER_MS for samples in blocks.values()]
    if not all(len(block) and np.isfinite(block).all() and (block > 0).all() for block in found):
        raise ValueError("a sample that is no time")
    return found


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
