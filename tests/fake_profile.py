"""Measurements that take no time: what a probe could have said of files that are there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune2deploy.devices import Devices
from prune2deploy.latency import ProfileOptions, ProfileResult
from prune2deploy.latency.options import options_on
from prune2deploy.latency.results import result_from_answer


def fake_answer(paths: Mapping[str, Path]) -> dict[str, Any]:
    facts = {
        "inputs": [{"shape": [1, 3, 8, 8]}],
        "load_ns": 1,
        "first_run_ns": 1,
        "peak_memory_kb": None,
        "base_memory_kb": None,
        "warmup": {"runs": 9, "settled": True},
        "size_bytes": 1,
        "setup": {},
    }
    models = [
        {"name": name, **facts, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in paths.items()
    ]
    turns = [
        {"block": block, "model": model, "samples_ns": [1_000_000 * (2 - model)] * 10}
        for block in range(10)
        for model in range(len(paths))
    ]
    return {
        "models": models,
        "turns": turns,
        **dict.fromkeys(("cpus", "versions", "machine", "state")),
    }


def measured(
    paths: Mapping[str, Path],
    *,
    device: str,
    options: ProfileOptions,
    devices: Devices,
    tainted: tuple[str, ...] = (),
) -> ProfileResult:
    """Stand in for `profile`: 2 ms for the first file, 1 ms for the second."""
    options = options_on(devices[device], options)
    result = result_from_answer(device, paths, options, fake_answer(paths))
    return replace(result, tainted=tainted)
