"""What a device is and has, for whoever wants to measure there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .job import Refusal
from .machine import machine
from .program import PROGRAM
from .runtimes import RUNTIMES
from .state import state
from .trtexec_measure import Trtexec

KNOWN: dict[str, Any] = {**RUNTIMES, "trtexec": Trtexec}


def facts(job: dict[str, Any]) -> dict[str, Any]:
    """Return what `devices check` tells: the machine, its state now, and its runtimes."""
    root = Path(job["sysroot"])
    home = os.path.expanduser("~")
    return {
        "python": platform.python_version(),
        "python_bits": 64 if sys.maxsize > 2**32 else 32,
        "executable": sys.executable,
        "machine": machine(root),
        "state": state(root),
        "runtimes": {name: versions_alone(name) for name in KNOWN},
        "disk_free_bytes": shutil.disk_usage(home).free if os.path.isdir(home) else None,
    }


def versions_alone(name: str) -> dict[str, Any]:
    """Import a runtime in a child process: a build for another processor dies of a signal."""
    child = subprocess.run(
        [sys.executable, PROGRAM, "--versions", name], stdout=subprocess.PIPE, text=True
    )
    if child.returncode < 0:
        return {"versions": None, "signal": -child.returncode, "message": "it crashed"}
    try:
        found: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        message = f"Python ended with code {child.returncode}"
        return {"versions": None, "signal": None, "message": message}
    return found


def versions_here(name: str) -> dict[str, Any]:
    """What the child does."""
    try:
        return {"versions": KNOWN[name].versions(), "signal": None, "message": None}
    except Refusal as err:
        return {"versions": None, "signal": None, "message": str(err)}


def files(job: dict[str, Any]) -> dict[str, Any]:
    """Return the hash of each file that is there, so that only what is missing is sent."""
    return {"sha256": {path: digest(path) for path in job["paths"]}}


def digest(path: str) -> str | None:
    """Return the SHA-256 of a file's content, or None where there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while True:
                part = stream.read(1 << 20)
                if not part:
                    return found.hexdigest()
                found.update(part)
    except OSError:
        return None
