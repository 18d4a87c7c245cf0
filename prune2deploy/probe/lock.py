"""One measurement at a time on a machine, whoever asks for it."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import sys
import time
from typing import Any, Iterator

from .job import Refusal

POLL_S = 0.2


@contextlib.contextmanager
def only_one(job: dict[str, Any]) -> Iterator[None]:
    """Hold the machine's lock; the kernel lets go of it when this process ends, however it does.

    Raises Refusal ("busy") when somebody else still holds it after the time to wait.
    """
    if job["lock"] is None:
        yield
        return
    file = _open(job["lock"])
    try:
        _wait(file, job["lock_wait_s"], job["lock"])
        with contextlib.suppress(OSError):  # another user's file, which we may only lock
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_who()).encode(), 0)
        yield
    finally:
        os.close(file)


def _open(path: str) -> int:
    # Without O_CREAT first: in a folder like /tmp the kernel refuses it on others' files.
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            file = os.open(path, flags | os.O_CLOEXEC, 0o666)
            with contextlib.suppress(OSError):  # the umask took rights away that others need
                os.fchmod(file, 0o666)
            return file
    raise Refusal("no_lock", f"cannot open the lock at {path}; check its owner and its folder")


def _wait(file: int, limit_s: float, path: str) -> None:
    end = time.monotonic() + limit_s
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            holder = os.pread(file, 1000, 0).decode(errors="replace") or "somebody"
        if time.monotonic() >= end:
            raise Refusal(
                "busy",
                f"another measurement runs here since before {limit_s:g} s ago ({holder}), and two "
                f"would disturb each other. Try again later, or end it (lock: {path})",
            )
        if not told:
            line = {"stage": "waiting for another measurement", "model": None, "done": 0.0}
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
            told = True
        time.sleep(POLL_S)


def _who() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return {"user": user, "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
