"""What the probe says while it runs and when it ends, on whatever device."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Mapping
from typing import Any

from prune2deploy.devices.base import Answer, Job, Report
from prune2deploy.errors import DeviceError
from prune2deploy.printable import printable, printable_json

_SIGNAL_ADVICE = {
    "SIGILL": "The runtime uses instructions that this processor lacks: install a build for it.",
    "SIGKILL": "Often the system ran out of memory: close other programs, or use a smaller model.",
    "SIGSEGV": "The runtime crashed: try another version of it, and check the model file.",
    "SIGBUS": "Often a full disk or memory: free some and try again.",
    "SIGALRM": "It took longer than its time limit: raise time_limit_s, or ask for less.",
}
_LOG_LINES = 12
_LOG_CHARACTERS = 500

MAX_ANSWER = 256 << 20
"""Bytes of an answer; that of a measurement with every sample has a few million."""
MAX_LINE = 1 << 16
"""Characters of a line of progress; of a longer one the rest counts as the next."""


def job_line(job: Job, time_limit_s: float) -> str:
    """The job as the probe reads it: one line."""
    # A little later than ours: for a probe whose caller is gone, not to race with it.
    return json.dumps({**job, "limit_s": time_limit_s + 5}) + "\n"


class Follower:
    """Reads standard error: progress goes to `report`, the last lines of the rest are kept."""

    def __init__(self, device: str, report: Report) -> None:
        self._device = device
        self._report = report
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def line(self, text: str) -> None:
        """Take one line."""
        progress = _progress(text)
        if progress is not None:
            self._report(progress)
        elif text.strip():
            self._log.append(printable(text.rstrip())[:_LOG_CHARACTERS])

    def last_words(self) -> str:
        """What it said last, in a sentence."""
        if not self._log:
            return "It said nothing else."
        return "Its last words:\n  " + "\n  ".join(self._log)

    def too_large(self) -> DeviceError:
        """The error of an answer that does not end."""
        return DeviceError(
            f"Device '{self._device}': the answer is larger than {MAX_ANSWER >> 20} MiB, which is "
            "none of our probe's, and was given up. Look at what runs there: prune2deploy devices "
            f"shell-test {self._device}. {self.last_words()}"
        )

    def too_long(self, time_limit_s: float) -> DeviceError:
        """The error of a probe that did not end in time."""
        return DeviceError(
            f"Device '{self._device}': the measurement did not end within {time_limit_s:g} s and "
            "was stopped. Raise time_limit_s, or ask for less (min_time_s, min_samples, fewer "
            f"models). {self.last_words()}"
        )


def _progress(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(printable_json(line))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "stage" in value else None


def read_answer(device: str, text: str, code: int, follower: Follower) -> Answer:
    """Return the probe's answer.

    Raises:
        DeviceError: it was refused, crashed or interrupted, or is not an answer.
    """
    if code < 0:
        raise DeviceError(
            f"Device '{device}': the probe was ended by signal {_signal_text(-code)} "
            f"{follower.last_words()}"
        )
    try:
        answer: Answer = json.loads(printable_json(text))
        status = answer["status"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise DeviceError(
            f"Device '{device}': the probe ended with code {code} and no answer, where one JSON "
            f"document was expected. Check that its Python runs. {follower.last_words()}"
        ) from err
    if status == "interrupted":
        raise DeviceError(
            f"Device '{device}': the measurement was interrupted from outside. Run it again."
        )
    if status == "error":
        try:
            error = answer["error"]
            text, kind = _error_text(error, follower), str(error["kind"])
        except (LookupError, TypeError, ValueError) as err:
            raise DeviceError(
                f"Device '{device}' tells of an error in a form that is not our probe's. Measure "
                "again; if it stays so, look at what runs there: prune2deploy devices shell-test"
            ) from err
        raise DeviceError(f"Device '{device}': {text}", kind)
    return answer


def _error_text(error: Mapping[str, Any], follower: Follower) -> str:
    about = f"model '{error['model']}': " if error["model"] else ""
    if error["kind"] == "internal":
        return (
            f"{about}the probe failed: {error['message']}. Please report this. "
            f"{follower.last_words()}"
        )
    if error["kind"] == "crashed" and error["signal"]:
        text = _signal_text(error["signal"])
        return f"{about}{error['message']}, by signal {text} {follower.last_words()}"
    return f"{about}{error['message']}."


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    advice = _SIGNAL_ADVICE.get(name, "Run it again; if it ends so again, try another runtime.")
    return f"{name}. {advice}"
