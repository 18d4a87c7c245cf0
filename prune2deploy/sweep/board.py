"""Where every combination of a sweep stands, and how a worker tells it: a small file of its own.

A file and not a message: what is shown does not depend on how the worker is reached, and
whoever looks at the folder sees the same.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune2deploy import progress
from prune2deploy.recipe import Combination
from prune2deploy.report import Metrics

State = Literal[
    "waiting", "queued", "at work", "trained", "measuring", "finished", "not measured", "failed"
]

_BETWEEN_WRITES_S = 0.5


@dataclass
class Status:
    """What a worker says of itself. began: the stages, in the order they were begun."""

    attempt: str
    pid: int
    host: str
    began: list[str] = field(default_factory=list)
    label: str = ""
    done: float = 0.0
    total: float | None = None
    info: str = ""


def read_status(path: Path, attempt: str) -> Status | None:
    """Return what the worker of this attempt said last, None: nothing yet."""
    try:
        status = Status(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return status if status.attempt == attempt else None


class StatusWriter:
    """Listens to the progress of one run and writes it to a file, at most twice a second."""

    def __init__(self, path: Path, attempt: str, host: str) -> None:
        self._path = path
        self._status = Status(attempt, os.getpid(), host)
        self._open: list[_Work] = []
        self._lock = threading.Lock()  # work begins and ends on several threads
        self._last = 0.0
        self.began("")

    def began(self, stage: str) -> None:
        """A stage begins; without a name only the worker does."""
        with self._lock:
            status = self._status
            if stage:
                status.began.append(stage)
            status.label, status.done, status.total, status.info = "", 0.0, None, ""
            self._write()

    def open(self, label: str, total: float | None) -> _Work:
        """Begin a piece of work; see `progress.Listener`."""
        work = _Work(label, total, self._advanced)
        with self._lock:
            self._open.append(work)
        self._advanced()
        return work

    def close(self, task: progress.Task) -> None:
        """End a piece of work."""
        assert isinstance(task, _Work)
        with self._lock:
            self._open.remove(task)

    def _advanced(self) -> None:
        with self._lock:
            if self._open and time.monotonic() - self._last >= _BETWEEN_WRITES_S:
                work, status = self._open[-1], self._status
                status.label, status.done, status.total = work.label, work.done, work.total
                status.info = work.info
                self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text(json.dumps(vars(self._status)), encoding="utf-8")
        temporary.replace(self._path)


class _Work:
    """A piece of work that is not shown here; see `progress.Task`."""

    def __init__(self, label: str, total: float | None, changed: Callable[[], None]) -> None:
        self.label, self.total, self.done, self.info = label, total, 0.0, ""
        self._changed = changed

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        self.done += steps
        self.info = self.info if info is None else info
        self._changed()


@dataclass
class Row:
    """One combination on the board.

    stage: the one at work, or the last one. detail: how far it is. began: stages that its worker
    has begun. seconds: that its stages took,
    here or where they were taken from. deaths: workers of it that died. error, traceback: of a
    combination that failed. kept: whether it was finished before this sweep began.
    """

    combination: Combination
    folder: Path
    state: State = "waiting"
    stage: str = ""
    detail: str = ""
    started: float | None = None
    seconds: float = 0.0
    began: list[str] = field(default_factory=list)
    deaths: int = 0
    error: str | None = None
    traceback: str | None = None
    kept: bool = False
    metrics: Metrics | None = None
    metric: tuple[str, float] | None = None

    @property
    def name(self) -> str:
        return self.combination.name

    def elapsed(self, now: float) -> float:
        """Seconds of work so far."""
        return self.seconds + (0.0 if self.started is None else now - self.started)

    def begin(self, now: float) -> None:
        """Work on it begins."""
        self.started = now

    def stop(self, now: float) -> None:
        """Work on it is over, for now."""
        self.seconds, self.started = self.elapsed(now), None


class Board(list[Row]):
    """All combinations. told: is told each row that changed in a way that a reader would see."""

    told: Callable[[Row], None] = staticmethod(lambda row: None)

    def change(self, row: Row, state: State | None = None, **facts: Any) -> None:
        """Set facts of a row."""
        before = (row.state, row.stage, row.deaths)
        row.state = state or row.state
        for name, value in facts.items():
            setattr(row, name, value)
        if (row.state, row.stage, row.deaths) != before:
            self.told(row)
