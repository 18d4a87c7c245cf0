"""Make a virtual environment on this machine and put packages into it, when asked to."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from .job import Refusal
from .lock import only_one

LAST_LINES = 8
SHOWN_CHARACTERS = 100
_VENV_SHARE = 0.2  # of the whole, about


def setup(job: dict[str, Any]) -> dict[str, Any]:
    """Install job["packages"] into the environment job["folder"]; what is there already stays.

    Returns {"python": path of its Python, "created": whether the environment is new}.

    Raises Refusal: "no_venv": this Python cannot make one; "no_install": pip failed.
    """
    folder = Path(os.path.expanduser(job["folder"]))
    python = folder / "bin" / "python"
    created = not usable(folder, job["system_site"])
    if created:
        make(folder, job["system_site"])
    if job["packages"]:
        tell("pip install " + " ".join(job["packages"]), _VENV_SHARE)
        pip = ["-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command = [str(python), *pip, "--progress-bar", "off", *job["packages"]]
        code, last = follow(command, _VENV_SHARE)
        if code:
            raise Refusal("no_install", pip_failed(job["packages"], code, last))
    return {"python": str(python), "created": created}


def usable(folder: Path, system_site: bool) -> bool:
    """Whether there is an environment of this kind whose Python and pip run."""
    try:
        settings = (folder / "pyvenv.cfg").read_text(errors="replace")
        command = [str(folder / "bin" / "python"), "-m", "pip", "--version"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    found = re.search(r"^include-system-site-packages\s*=\s*(\w+)", settings, re.MULTILINE)
    return done.returncode == 0 and bool(found and found.group(1) == str(system_site).lower())


def make(folder: Path, system_site: bool) -> None:
    """Make the environment, over what an attempt before may have left."""
    # Debian leaves these two out of Python, and what it says of that is long.
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refusal(
            "no_venv",
            f"{sys.executable} cannot make virtual environments: its module "
            f"{' and '.join(missing)} is missing. On Debian, Ubuntu and Raspberry Pi OS: "
            "sudo apt-get install python3-venv",
        )
    tell(f"making {folder}", 0.0)
    option = ["--system-site-packages"] if system_site else []
    code, last = follow([sys.executable, "-m", "venv", *option, str(folder)], 0.0)
    if code:
        raise Refusal(
            "no_venv",
            f"the virtual environment {folder} could not be made (code {code}); it said:\n{last}\n"
            "Check the rights and the room there; on Debian: sudo apt-get install python3-venv",
        )


def follow(command: list[str], before: float) -> tuple[int, str]:
    """Run a program to its end and show each line; return its code and its last lines.

    before: how far the whole is already, in 0..1.
    """
    lines: deque[str] = deque(maxlen=LAST_LINES)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
        start_new_session=True,  # to be ended together with its own children
    )
    assert process.stdout is not None
    try:
        for count, line in enumerate(process.stdout, 1):
            if line.strip():
                lines.append(line.rstrip())
                # Nobody knows how many lines are to come: nearer to the end with each.
                tell(line, before + (0.98 - before) * count / (count + 20))
        return process.wait(), "\n".join(lines)
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def tell(text: str, done: float) -> None:
    stage = text.strip()[:SHOWN_CHARACTERS]
    sys.stderr.write(json.dumps({"stage": stage, "model": None, "done": round(done, 3)}) + "\n")
    sys.stderr.flush()


def pip_failed(packages: list[str], code: int, last: str) -> str:
    """Say what the end of pip's output means."""
    what = f"pip could not install {' '.join(packages)} (code {code})"
    lower = last.lower()
    if "connection" in lower or "resolution" in lower or "timed out" in lower:
        advice = "The package index was not reached: give the device a way to the network"
    elif "no matching distribution" in lower or "not a supported wheel" in lower:
        bits = 64 if sys.maxsize > 2**32 else 32
        advice = (
            f"There is none for Python {platform.python_version()} ({bits} bit) on "
            f"{platform.machine()}: use a 64-bit system and a Python that the packages support"
        )
    elif "no space left" in lower:
        advice = "The disk is full: make room, or name another `folder` in devices.yaml"
    else:
        advice = "Mend what it says and run this again; what is there already stays"
    return f"{what}; its last words:\n{last}\n{advice}"


def locked(job: dict[str, Any]) -> dict[str, Any]:
    """Take the lock of all measurements and let go of it; the answer to the ask "lock"."""
    with only_one(job):
        return {"lock": job["lock"], "python": platform.python_version()}
