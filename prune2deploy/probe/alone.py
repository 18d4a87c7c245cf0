"""A model in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .job import Refusal
from .placing import place_threads
from .program import PROGRAM
from .reading import field, read
from .runtimes import runtime_of


def resident_kb(name: str) -> int | None:
    text = field(read(Path("/proc/self/status")), name)
    return int(text.split()[0]) if text else None


def run_alone(job: dict[str, Any]) -> dict[str, Any]:
    """Load and run the job's one model in this process, which has done nothing else."""
    cpus = place_threads(job)
    runtime = runtime_of(job)
    runtime.versions()  # imports it, so that loading the model is timed without that
    with contextlib.suppress(OSError):  # where not allowed, the peak may be that of the import
        Path("/proc/self/clear_refs").write_text("5")
    base_kb = resident_kb("VmRSS")
    session = runtime(job["models"][0], job, cpus)
    start = time.perf_counter_ns()
    session.open()
    loaded = time.perf_counter_ns()
    session.run()
    ran = time.perf_counter_ns()
    return {
        "load_ns": loaded - start,
        "first_run_ns": ran - loaded,
        "peak_memory_kb": resident_kb("VmHWM"),
        "base_memory_kb": base_kb,
        "inputs": session.inputs,
        "outputs": session.outputs(),
    }


def alone(model: dict[str, str], job: dict[str, Any]) -> dict[str, Any]:
    """Have a child process do `run_alone` for one model; a crash there becomes a Refusal."""
    name = model["name"]
    if not os.path.isfile(model["path"]):
        raise Refusal("missing", f"no file at {model['path']}", name)
    child = subprocess.run(
        [sys.executable, PROGRAM, "--alone"],
        input=json.dumps({**job, "models": [model]}) + "\n",
        stdout=subprocess.PIPE,
        text=True,
    )
    if child.returncode < 0:
        raise Refusal("crashed", "the runtime crashed with it", name, -child.returncode)
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError as err:
        text = f"the runtime ended with code {child.returncode} and no answer"
        raise Refusal("crashed", text, name) from err
    if answer["status"] == "interrupted":
        raise KeyboardInterrupt
    if answer["status"] == "error":
        raise Refusal(answer["error"]["kind"], answer["error"]["message"], name)
    facts: dict[str, Any] = answer["alone"]
    return facts
