"""Threads and where they run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .job import Refusal
from .reading import field, read

CAN_PIN = hasattr(os, "sched_setaffinity")


def cpu_list(text: str) -> list[int]:
    """Return the CPUs in a kernel list such as '0-2,5'."""
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def best_cpus(allowed: set[int], count: int, root: Path = Path("/")) -> list[int]:
    """Choose CPUs: a physical core each while they last, then the faster, then the higher number.

    CPU 0 serves most interrupts, so it is the noisiest of its kind.
    """

    def rank(cpu: int) -> tuple[int, int, int]:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = read(folder / "topology/thread_siblings_list") or str(cpu)
        same_core = [other for other in cpu_list(siblings) if other in allowed]
        speed = int(read(folder / "cpu_capacity") or 0)
        return same_core.index(cpu), -speed, -cpu

    return sorted(allowed, key=rank)[:count]


def place_threads(job: dict[str, Any]) -> list[int] | None:
    """Pin the calling thread; return one CPU per thread, or None when nothing is pinned."""
    if job["pin"] is None:
        return None
    if not CAN_PIN:
        raise Refusal("not_as_asked", "this system cannot pin threads; set pin to null")
    allowed, threads = os.sched_getaffinity(0), job["threads"]
    cpus = best_cpus(allowed, threads) if job["pin"] == "auto" else list(job["pin"])
    if not len(cpus) == len(set(cpus)) == threads or not allowed.issuperset(cpus):
        raise Refusal(
            "not_as_asked",
            f"{threads} thread(s) need as many different CPUs, pin is {job['pin']} and this "
            f"process may use CPUs {sorted(allowed)}. Ask for fewer threads, name other CPUs, or "
            "set pin to null (None)",
        )
    os.sched_setaffinity(0, {cpus[0]})
    if os.sched_getaffinity(0) != {cpus[0]}:
        raise Refusal("not_as_asked", f"the calling thread did not stay on CPU {cpus[0]}")
    return cpus


def thread_affinities() -> dict[str, str | None]:
    """Return {thread id: list of CPUs it may run on} of this process; empty where unknown."""
    found = Path("/proc/self/task").glob("*/status")
    return {path.parent.name: field(read(path), "Cpus_allowed_list") for path in found}
