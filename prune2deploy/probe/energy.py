"""The energy of one inference, where the machine can tell how much power it takes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

from .jetson import tegrastats_watts
from .measuring import MIN_CALLS, rest, run_for
from .nvidia import gpu_state, has_gpu
from .power import ina3221_watts, rapl_counters, rapl_joules, rapl_ranges, rapl_zones
from .raspberry_pi import pmic_watts

IDLE_S = 2.0
SAMPLE_S = 0.1

Work = Callable[[], None]
# Does the work; returns joules (None: could not be read) and the seconds they were counted over.
Meter = Callable[[Work], Tuple[Optional[float], float]]


def counted(root: Path) -> Meter:
    """A meter by RAPL's counters."""
    zones = rapl_zones(root)

    def meter(work: Work) -> tuple[float | None, float]:
        before, start = rapl_counters(zones), time.perf_counter()
        work()
        after, end = rapl_counters(zones), time.perf_counter()
        return rapl_joules(before, after, rapl_ranges(zones)), end - start

    return meter


def sampled(watts: Callable[[], float | None], cpus: list[int] | None) -> Meter:
    """A meter by the mean of samples, which a thread takes on these CPUs (None: on any)."""

    def meter(work: Work) -> tuple[float | None, float]:
        samples: list[float] = []
        over = threading.Event()

        def sample() -> None:
            if cpus:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, cpus)  # of this thread alone
            while not over.wait(SAMPLE_S) or not samples:
                now = watts()
                if now is not None:
                    samples.append(now)
                elif over.is_set():
                    return

        thread = threading.Thread(target=sample, daemon=True)
        start = time.perf_counter()
        thread.start()
        try:
            work()
        finally:
            over.set()
        time_s = time.perf_counter() - start
        thread.join()
        return (sum(samples) / len(samples) * time_s if samples else None), time_s

    return meter


def uses_gpu(job: dict[str, Any]) -> bool:
    """Whether the job's runtime computes on an NVIDIA GPU."""
    words = f"{job['runtime']} {job['provider']}".lower()
    return any(word in words for word in ("cuda", "tensorrt"))


def find_meter(root: Path, gpu: bool, cpus: list[int] | None) -> tuple[str, Meter] | None:
    """Return (name of the source, meter) of what can be read here, or None.

    gpu: a GPU computes. A discrete one has a meter of its own, and no other would do.
    """
    if gpu and has_gpu(root):

        def gpu_watts() -> float | None:
            found = gpu_state(root)
            return found["power_w"] if found else None

        return ("nvidia-smi", sampled(gpu_watts, cpus)) if gpu_watts() is not None else None
    sources: dict[str, Callable[[Path], float | None]] = {
        "ina3221": ina3221_watts,
        "tegrastats": tegrastats_watts,
        "pmic": pmic_watts,
    }
    for name, watts in sources.items():
        if watts(root) is not None:
            return name, sampled(lambda: watts(root), cpus)  # noqa: B023  (returned at once)
    return ("rapl", counted(root)) if rapl_zones(root) else None


def energy_of(
    runs: List[Work],  # noqa: UP006  (Python 3.8)
    names: list[str],
    source: str,
    meter: Meter,
    time_s: float,
) -> list[dict[str, Any] | None]:
    """Return the energy of each model, which runs alone for that time, after an idle time.

    A meter that shows no power while the machine idles shows nothing at all: then all are None.
    net_joules_per_run is what is above the idle machine; noise can make it negative. Worker threads
    of the model before are waited for (`rest`), as their power would count for the next reading.
    """
    rest()
    idle_joules, idle_s = meter(lambda: time.sleep(min(IDLE_S, time_s)))
    if not idle_joules or idle_joules < 0:
        return [None for _ in runs]
    idle_watts = idle_joules / idle_s
    found: list[dict[str, Any] | None] = []
    for index, run in enumerate(runs):
        sys.stderr.write(json.dumps({"stage": "energy", "model": names[index], "done": 1.0}) + "\n")
        sys.stderr.flush()
        rest()
        count, joules, seconds = _metered(run, meter, time_s)
        if joules is None:
            found.append(None)
            continue
        found.append(
            {
                "source": source,
                "runs": count,
                "time_s": seconds,
                "joules": joules,
                "idle_watts": idle_watts,
                "joules_per_run": joules / count,
                "net_joules_per_run": (joules - idle_watts * seconds) / count,
            }
        )
    return found


def _metered(run: Work, meter: Meter, time_s: float) -> tuple[int, float | None, float]:
    count = 0

    def work() -> None:
        nonlocal count
        count = len(run_for(run, time_s, MIN_CALLS))

    joules, seconds = meter(work)
    return count, joules, seconds


def energies(
    runs: list[Work], job: dict[str, Any], cpus: list[int] | None
) -> list[dict[str, Any] | None]:
    """Return the energy of each of the job's models, or None for all where nothing can tell it.

    cpus: where samples may be taken, away from the models; None: anywhere.
    """
    none: list[dict[str, Any] | None] = [None for _ in runs]
    if job["energy_s"] <= 0:
        return none
    found = find_meter(Path(job["sysroot"]), uses_gpu(job), cpus)
    if found is None:
        return none
    names = [model["name"] for model in job["models"]]
    return energy_of(runs, names, found[0], found[1], job["energy_s"])
