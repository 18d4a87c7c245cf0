"""This machine."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from typing_extensions import Self

from prune2deploy.devices.base import Answer, Job, Report
from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.devices.following import (
    MAX_ANSWER,
    MAX_LINE,
    Follower,
    job_line,
    read_answer,
)
from prune2deploy.devices.settings import LocalSettings
from prune2deploy.errors import DeviceError

_GRACE_S = 2.0
_LOOK_S = 0.5  # between two looks at the size of the answer
_WAITING_LINES = 1000


class LocalDevice:
    """This machine: the probe runs in a process of its own, with this Python unless told."""

    def __init__(self, name: str = "local", settings: LocalSettings | None = None) -> None:
        self.name = name
        self._settings = settings or LocalSettings()

    @property
    def settings(self) -> LocalSettings:
        return self._settings

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="prune2deploy-")
        self._probe = Path(self._folder.name, "probe.pyz")
        self._probe.write_bytes(probe_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def place(self, path: Path) -> str:
        return str(path.resolve())

    def fetch(self, path: str, target: Path) -> None:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(path, part)
        os.replace(part, target)

    def run_probe(self, job: Job, *, time_limit_s: float, report: Report) -> Answer:
        with tempfile.TemporaryFile("w+") as answer:
            try:
                process = subprocess.Popen(
                    [self.settings.python, str(self._probe)],
                    stdin=subprocess.PIPE,
                    stdout=answer,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # to be ended together with its own children
                )
            except OSError as err:
                raise DeviceError(
                    f"Device '{self.name}': cannot start Python at {self.settings.python} ({err}). "
                    "Give the path of a Python 3.8 or newer that has the runtime."
                ) from err
            follower = Follower(self.name, report)
            _follow(process, job_line(job, time_limit_s), time_limit_s, follower, answer)
            answer.seek(0)
            return read_answer(self.name, answer.read(), process.returncode, follower)


def _follow(
    process: subprocess.Popen[str],
    job: str,
    time_limit_s: float,
    follower: Follower,
    answer: IO[str],
) -> None:
    """Give a started probe its job and stay with it to its end, which is certain on return.

    Raises:
        DeviceError: it did not end within the limit, or its answer does not.
    """
    assert process.stdin is not None
    assert process.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
    done = threading.Event()
    pump = threading.Thread(target=_pump, args=(process.stderr, lines, done), daemon=True)
    pump.start()
    end = time.monotonic() + time_limit_s
    try:
        # It may have died at once; then its exit code says more than the broken pipe. Standard
        # input stays open: its end tells the probe that nobody waits for the answer any more.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.flush()
        while (line := _next_line(lines, end)) is not None:
            if os.fstat(answer.fileno()).st_size > MAX_ANSWER:
                raise follower.too_large()
            follower.line(line)
        if os.fstat(answer.fileno()).st_size > MAX_ANSWER:
            raise follower.too_large()
        process.wait(max(0.0, end - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as err:
        raise follower.too_long(time_limit_s) from err
    finally:
        _end(process)
        done.set()
        pump.join()
        process.stderr.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _pump(stream: IO[str], lines: queue.Queue[str | None], done: threading.Event) -> None:
    """Pass lines on until the stream ends, or nobody listens any more."""
    while not done.is_set():
        line = stream.readline(MAX_LINE) or None
        while not done.is_set():
            with contextlib.suppress(queue.Full):
                lines.put(line, timeout=_LOOK_S)
                break
        if line is None:
            break


def _next_line(lines: queue.Queue[str | None], end: float) -> str | None:
    """Return the next line, an empty one now and then, and None at the end of the stream.

    Raises:
        TimeoutError: at `end`.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    try:
        return lines.get(timeout=min(left, _LOOK_S))
    except queue.Empty:
        return ""


def _end(process: subprocess.Popen[str]) -> None:
    """End the probe and its children, politely first."""
    if process.returncode is not None and process.returncode >= 0:
        return  # it ended by itself, which it only does after its children
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
