"""What could disturb a measurement, recorded while it goes on: by a process beside the clock.

It runs on CPUs that nothing is measured on, where there are any. There it looks once a second,
otherwise seldom.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

from .energy import uses_gpu
from .lifeline import die_with_parent
from .placing import CAN_PIN, cpu_list
from .program import PROGRAM
from .reading import read
from .state import state

INTERVAL_S = 1.0
SELDOM_S = 5.0  # where it can only run on the CPUs that are measured
_START_LIMIT_S = 10.0
_END_LIMIT_S = 10.0  # a slow sensor program may have to end first


def spare_cpus(
    allowed: list[int] | None, cpus: list[int] | None, root: Path = Path("/")
) -> list[int]:
    """Return the CPUs that are not measured, if possible none that shares a core with one."""
    if not allowed or cpus is None:
        return []
    shared = set(cpus)
    for cpu in cpus:
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        shared.update(cpu_list(read(siblings) or str(cpu)))
    apart = [cpu for cpu in allowed if cpu not in shared]
    return apart or [cpu for cpu in allowed if cpu not in cpus]


def interval(threads: int, allowed: list[int] | None, spare: list[int]) -> float:
    """Return the seconds between two looks."""
    count = len(allowed) if allowed else os.cpu_count() or 1
    return INTERVAL_S if spare or count > threads else SELDOM_S


def record(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Record the state until standard input ends; what the watching process does.

    settings: see `watching`. Each record is a `state` with "at_s", seconds since the start.
    """
    die_with_parent()
    if settings["cpus"]:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, settings["cpus"])
    root, start = Path(settings["sysroot"]), time.monotonic()
    records: list[dict[str, Any]] = []
    while True:
        at_s = time.monotonic() - start
        records.append({"at_s": at_s, **state(root, settings["process"], settings["skip"])})
        if len(records) == 1:
            os.close(settings["ready"])
        left = settings["interval_s"] * len(records) - (time.monotonic() - start)
        if select.select([0], [], [], max(left, 0.0))[0]:
            return records


@contextlib.contextmanager
def watching(
    job: dict[str, Any], allowed: list[int] | None, cpus: list[int] | None
) -> Iterator[list[dict[str, Any]]]:
    """Watch while the block runs; its list is filled after the block.

    allowed: the CPUs this process might use before it was pinned; cpus: those it measures on. The
    block starts when the first record is taken, so the watcher's own start disturbs nothing.
    """
    root, spare = Path(job["sysroot"]), spare_cpus(allowed, cpus)
    slow = ["power_mode", "jetson_clocks"]
    ready, theirs = os.pipe()
    settings = {
        "sysroot": job["sysroot"],
        # Under another root there is no folder of this process.
        "process": str(os.getpid()) if root == Path("/") else "self",
        "skip": slow if uses_gpu(job) else [*slow, "gpu_state"],
        "cpus": spare,
        "interval_s": interval(job["threads"], allowed, spare),
        "ready": theirs,
    }
    records: list[dict[str, Any]] = []
    with _started_on(spare, theirs) as process:
        try:
            os.close(theirs)
            assert process.stdin is not None
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            select.select([ready], [], [], _START_LIMIT_S)
            yield records
            with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
                answer, _ = process.communicate(timeout=_END_LIMIT_S)  # closes its input first
                records += json.loads(answer).get("watch", [])
        finally:
            process.kill()
            os.close(ready)


def _started_on(cpus: list[int], descriptor: int) -> subprocess.Popen[str]:
    """Start the watcher on these CPUs from its first instruction on."""
    here = os.sched_getaffinity(0) if CAN_PIN else None
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
        return subprocess.Popen(
            [sys.executable, PROGRAM, "--watch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
            pass_fds=[descriptor],
        )
    finally:
        if here is not None:
            os.sched_setaffinity(0, here)
