"""Where a model is measured. A device opens and closes, takes files, and runs probe.py.

Every device runs the same probe.py; they differ only in how the file, the models and the answer
travel. To add a kind: write a class of this shape and one line in `DEVICES`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from typing_extensions import Self

from prune2deploy.errors import DeviceError, nearest_name_hint

PROBE = Path(__file__).with_name("probe.py")
Job = Mapping[str, Any]
Answer = dict[str, Any]
Report = Callable[[Mapping[str, Any]], None]

_SIGNAL_ADVICE = {
    "SIGILL": "The runtime uses instructions that this processor lacks: install a build for it.",
    "SIGKILL": "Often the system ran out of memory: close other programs, or use a smaller model.",
    "SIGSEGV": "The runtime crashed: try another version of it, and check the model file.",
    "SIGBUS": "Often a full disk or memory: free some and try again.",
    "SIGALRM": "It took longer than its time limit: raise time_limit_s, or ask for less.",
}
_LOG_LINES = 12
_GRACE_S = 2.0


class Device(Protocol):
    """A machine that can be measured; what it holds is released when the with-block ends."""

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def place(self, path: Path) -> str:
        """Make a file available on the device; return its path there."""

    def run_probe(self, job: Job, *, time_limit_s: float, report: Report) -> Answer:
        """Run one job; `report` gets each progress line. Raises DeviceError unless it is "ok"."""


class LocalDevice:
    """This machine: the probe runs in a process of its own, with this Python unless told."""

    def __init__(self, name: str = "local", python: str = sys.executable) -> None:
        self.name = name
        self._python = python

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def place(self, path: Path) -> str:
        return str(path.resolve())

    def run_probe(self, job: Job, *, time_limit_s: float, report: Report) -> Answer:
        with tempfile.TemporaryFile("w+") as answer:
            # A little later than ours: for a probe whose caller is gone, not to race with it.
            text = json.dumps({**job, "limit_s": time_limit_s + 5})
            try:
                process = subprocess.Popen(
                    [self._python, str(PROBE)],
                    stdin=subprocess.PIPE,
                    stdout=answer,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # to be ended together with its own children
                )
            except OSError as err:
                raise DeviceError(
                    f"Device '{self.name}': cannot start Python at {self._python} ({err}). "
                    "Give the path of a Python 3.8 or newer that has onnxruntime."
                ) from err
            log = follow(self.name, process, text, time_limit_s, report)
            answer.seek(0)
            return read_answer(self.name, answer.read(), process.returncode, log)


DEVICES: dict[str, Callable[[], Device]] = {"local": LocalDevice}


def open_device(name: str) -> Device:
    """Return the device of this name, for a with-block.

    Raises:
        DeviceError: there is none.
    """
    if name not in DEVICES:
        raise DeviceError(f"No device is named '{name}'. {nearest_name_hint(name, DEVICES)}")
    return DEVICES[name]()


def follow(
    device: str, process: subprocess.Popen[str], job: str, time_limit_s: float, report: Report
) -> list[str]:
    """Give a started probe its job and stay with it to its end, which is certain on return.

    Returns the last lines on its standard error that were not progress.

    Raises:
        DeviceError: it did not end within the limit.
    """
    assert process.stdin is not None
    assert process.stderr is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    pump = threading.Thread(target=_pump, args=(process.stderr, lines), daemon=True)
    pump.start()
    log: deque[str] = deque(maxlen=_LOG_LINES)
    end = time.monotonic() + time_limit_s
    try:
        # It may have died at once; then its exit code says more than the broken pipe.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(job)
        while (line := _next_line(lines, end)) is not None:
            progress = _progress(line)
            if progress is None:
                log.append(line.rstrip())
            else:
                report(progress)
        process.wait(max(0.0, end - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as err:
        raise DeviceError(
            f"Device '{device}': the measurement did not end within {time_limit_s:g} s and was "
            "stopped. Raise time_limit_s, or ask for less (min_time_s, min_samples, fewer "
            f"models). {_last(log)}"
        ) from err
    finally:
        _end(process)
        pump.join()
        process.stderr.close()
    return list(log)


def _pump(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next_line(lines: queue.SimpleQueue[str | None], end: float) -> str | None:
    """Return the next line, None at the end of the stream; raises TimeoutError."""
    try:
        return lines.get(timeout=max(0.0, end - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None


def _progress(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "stage" in value else None


def _end(process: subprocess.Popen[str]) -> None:
    """End the probe and its children, politely first."""
    if process.returncode is not None and process.returncode >= 0:
        return  # it ended by itself, which it only does after its children
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


def read_answer(device: str, text: str, code: int, log: list[str]) -> Answer:
    """Return the probe's answer.

    Raises:
        DeviceError: it was refused, crashed or interrupted, or is not an answer.
    """
    if code < 0:
        raise DeviceError(
            f"Device '{device}': the probe was ended by signal {_signal_text(-code)} {_last(log)}"
        )
    try:
        answer: Answer = json.loads(text)
        status = answer["status"]
    except (ValueError, KeyError, TypeError) as err:
        raise DeviceError(
            f"Device '{device}': the probe ended with code {code} and no answer, where one JSON "
            f"document was expected. Check that its Python runs. {_last(log)}"
        ) from err
    if status == "interrupted":
        raise DeviceError(
            f"Device '{device}': the measurement was interrupted from outside. Run it again."
        )
    if status == "error":
        raise DeviceError(f"Device '{device}': {_error_text(answer['error'], log)}")
    return answer


def _error_text(error: Mapping[str, Any], log: list[str]) -> str:
    about = f"model '{error['model']}': " if error["model"] else ""
    if error["kind"] == "internal":
        return f"{about}the probe failed: {error['message']}. Please report this. {_last(log)}"
    if error["kind"] == "crashed" and error["signal"]:
        text = _signal_text(error["signal"])
        return f"{about}{error['message']}, by signal {text} {_last(log)}"
    return f"{about}{error['message']}."


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    advice = _SIGNAL_ADVICE.get(name, "Run it again; if it ends so again, try another runtime.")
    return f"{name}. {advice}"


def _last(log: Iterable[str]) -> str:
    lines = [line for line in log if line.strip()]
    return "Its last words:\n  " + "\n  ".join(lines) if lines else "It said nothing else."
