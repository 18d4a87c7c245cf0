"""A measurement by TensorRT's own program, in the form of our own."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from .job import Refusal
from .machine import machine
from .measuring import Progress
from .state import state
from .trtexec import find_trtexec, run_trtexec, version_of, why_not_comparable

# A block of ours is so many of its samples at least; intervals come from blocks.
_BLOCKS = 20


class Trtexec:
    """The program as `devices check` tells of it."""

    @staticmethod
    def versions() -> dict[str, str]:
        return {"trtexec": ".".join(map(str, version_of(find_trtexec())))}


def measure_with_trtexec(job: dict[str, Any]) -> dict[str, Any]:
    """Build and time each model of the job, one after the other; return the answer's contents.

    A block is a stretch of one model's samples, so that blocks of two models are not from the same
    time: `in_turns` says so.
    """
    root = Path(job["sysroot"])
    if job["threads"] != 1:
        raise Refusal("not_as_asked", "trtexec runs on the GPU; threads should be 1")
    if job["batch"] is not None:
        raise Refusal("not_as_asked", "trtexec takes the batch of the file; leave batch out")
    binary = find_trtexec()
    progress = Progress(job)
    before = state(root)
    facts, turns, results = [], [], []
    for index, model in enumerate(job["models"]):
        progress.tell("measure", index / len(job["models"]), model["name"])
        options = model.get("engine") or job["engine"] or {}
        with tempfile.TemporaryDirectory(prefix="prune2deploy-") as folder:
            found = run_trtexec(
                binary,
                limit_s=job["limit_s"],
                onnx=model["path"],
                engine=str(Path(folder) / "model.engine"),
                times=str(Path(folder) / "times.json"),
                precision=options.get("precision", "fp32"),
                held=options.get("precision", "fp32"),
                workspace_mb=options.get("workspace_mb"),
                warm_up_ms=round(job["warmup_min_s"] * 1000),
                duration_s=max(1, round(job["min_time_s"])),
                iterations=job["min_samples"],
            )
        results.append(found)
        samples = found["samples"]["latency_ns"]
        size = max(1, len(samples) // _BLOCKS)
        for block in range(len(samples) // size):
            part = samples[block * size : (block + 1) * size]
            turns.append({"block": block, "model": index, "settle_runs": 0, "samples_ns": part})
        facts.append(_facts(model, found))
    for other in results[1:]:
        reason = why_not_comparable(results[0], other)
        if reason is not None:
            raise Refusal("not_comparable", reason)
    version = ".".join(map(str, results[0]["version"]))
    progress.tell("measure", 1.0)
    return {
        "cpus": None,
        "versions": {"trtexec": version},
        "machine": machine(root),
        "state": {"start": before, "warm": state(root), "end": state(root)},
        "watch": None,
        "timer_ns": 0,
        "models": facts,
        "turns": turns,
        "in_turns": False,
    }


def _facts(model: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    content = Path(model["path"]).read_bytes()
    return {
        **model,
        "inputs": [],
        # trtexec does not tell these.
        "load_ns": None,
        "first_run_ns": None,
        "peak_memory_kb": None,
        "base_memory_kb": None,
        "energy": None,
        "warmup": {"runs": 0, "settled": True},
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "setup": {key: found[key] for key in ("program", "version", "flags")},
    }
