"""The program: a job from standard input, an answer on standard output."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Callable

from .alone import alone, run_alone
from .energy import energies
from .facts import facts, files, versions_here
from .jetson import power_mode
from .job import FORMAT, Refusal, read_job
from .layers import layers, run_layers
from .lifeline import die_with_parent, watch_caller
from .lock import only_one
from .machine import machine
from .measuring import MIN_CALLS, Progress, measure, median, timed, warm_up
from .outputs import outputs
from .placing import place_threads
from .runtimes import prepared, runtime_of
from .setup import locked, setup
from .state import state
from .tensorrt_build import build
from .trtexec_measure import measure_with_trtexec
from .watch import record, spare_cpus, watching

DEVICE_RUNS = 100  # timed by the device itself, after the measurement


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Measure all models of the job; return the answer's contents."""
    job = {**job, "models": prepared(job)}
    progress = Progress(job)
    root = Path(job["sysroot"])
    unpinned = machine(root)
    check_power_mode(job["power_mode"], root)
    count = len(job["models"])
    facts = []
    for index, model in enumerate(job["models"]):
        progress.tell("alone", index / count, model["name"])
        facts.append({**model, **alone(model, job)})
        content = Path(model["path"]).read_bytes()
        facts[-1]["size_bytes"] = len(content)
        facts[-1]["sha256"] = hashlib.sha256(content).hexdigest()
    runtime = runtime_of(job)
    versions = {"python": platform.python_version(), **runtime.versions()}
    cpus = place_threads(job)
    sessions, calls = [], []
    before = state(root)
    for index, model in enumerate(job["models"]):
        progress.tell("warmup", index / count, model["name"])
        session = runtime(model, job, cpus)
        session.open()
        session.run()
        facts[index]["setup"] = session.check()
        warm = facts[index]["warmup"] = warm_up(session.run, job)
        turn_calls = round(job["turn_s"] * 1e9 / warm["window_medians_ns"][-1])
        calls.append(max(MIN_CALLS, turn_calls))
        sessions.append(session)
    # A collection between two stamps would be counted as the model's time.
    gc.collect()
    gc.disable()
    warmed = state(root)
    runs = [session.run for session in sessions]
    with watching(job, unpinned["cpus_allowed"], cpus) as records:
        turns = measure(runs, calls, job, progress)
        end = state(root)  # while the clocks are still up
    for index, energy in enumerate(energies(runs, job, spare_cpus(unpinned["cpus_allowed"], cpus))):
        facts[index]["energy"] = energy
    for fact, session in zip(facts, sessions):
        # None: on a CPU there is no second clock.
        device_times = getattr(session, "device_times_ns", None)
        fact["device_ns"] = device_times(DEVICE_RUNS) if device_times else None
    return {
        "cpus": cpus,
        "versions": versions,
        "machine": unpinned,
        "state": {"start": before, "warm": warmed, "end": end},
        "watch": records or None,
        "timer_ns": median(timed(lambda: None, 1000)),
        "models": facts,
        "turns": turns,
    }


def check_power_mode(wanted: str | None, root: Path) -> None:
    """Refuse to measure in another power mode than the one that was asked for."""
    if wanted is None:
        return
    found = power_mode(root)
    if found is None or found["name"] != wanted:
        name = "unknown" if found is None else found["name"]
        raise Refusal(
            "not_as_asked",
            f"the power mode is {name}, and devices.yaml asks for {wanted}. Look up its number "
            "with 'nvpmodel -p --verbose', and set it with 'sudo nvpmodel -m NUMBER'",
        )


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """A measurement, alone on this machine."""
    if job["runtime"] == "trtexec":
        with only_one(job):
            return measure_with_trtexec(job)
    runtime_of(job)
    with only_one(job):
        return run_job(job)


HANDLERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "measure": measured,
    "layers": layers,
    "outputs": outputs,
    "build": build,
    "facts": facts,
    "files": files,
    "setup": setup,
    "lock": locked,
}


# What the child does that has one model for itself.
ALONE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "measure": run_alone,
    "layers": run_layers,
}


def answer_to(arguments: list[str]) -> dict[str, Any]:
    """Do what the arguments and standard input ask; every outcome is an answer."""
    try:
        if arguments[:1] == ["--versions"]:
            return {"status": "ok", **versions_here(arguments[1])}
        if arguments[:1] == ["--watch"]:
            return {"status": "ok", "watch": record(json.loads(sys.stdin.readline()))}
        job = read_job(sys.stdin.readline())
        if arguments[:1] in (["--alone"], ["--child"]):
            die_with_parent()
        else:
            watch_caller()
        if job["limit_s"] is not None:
            # The default action of the signal: no Python code runs while a call hangs.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, job["limit_s"])
        if arguments[:1] == ["--alone"]:
            return {"format": FORMAT, "status": "ok", "alone": ALONE[job["ask"]](job)}
        return {"format": FORMAT, "status": "ok", "job": job, **HANDLERS[job["ask"]](job)}
    except Refusal as err:
        error = err.facts
    except (KeyboardInterrupt, BrokenPipeError):  # the pipe: nobody is listening any more
        return {"format": FORMAT, "status": "interrupted"}
    except Exception as err:
        traceback.print_exc()
        error = Refusal("internal", f"{type(err).__name__}: {err}").facts
    return {"format": FORMAT, "status": "error", "error": error}


def main() -> int:
    """Run the program; returns its exit code."""
    # Runtimes print to standard output when they feel like it; the answer has it for itself.
    answer_to_fd = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # the connection is gone
    # Numpy's own threads have no work here, and would be counted.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    answer = answer_to(sys.argv[1:])
    with os.fdopen(answer_to_fd, "w") as stream:
        json.dump(answer, stream)
    return {"ok": 0, "error": 1, "interrupted": 130}[answer["status"]]
