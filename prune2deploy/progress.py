"""How long work shows that it is alive.

Rooms call `task` and know nothing of terminals; the CLI says with `use` who
listens. Without a listener nothing is shown, so the Python API stays quiet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Task(Protocol):
    """One piece of work on display."""

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        """Move on by `steps`; `info` is a short live text such as 'loss 0.31'."""


class Listener(Protocol):
    """Whoever shows the work."""

    def open(self, label: str, total: float | None) -> Task:
        """Begin to show a piece of work; `total` is None where nobody knows."""

    def close(self, task: Task) -> None:
        """The piece of work is over, finished or not."""


class _Quiet:
    def open(self, label: str, total: float | None) -> Task:
        return self

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        pass

    def close(self, task: Task) -> None:
        pass


_QUIET = _Quiet()
_listener: ContextVar[Listener] = ContextVar("progress_listener", default=_QUIET)


@contextmanager
def task(label: str, total: float | None = None) -> Iterator[Task]:
    """Show a piece of work for as long as the with-block lasts."""
    listener = _listener.get()
    shown = listener.open(label, total)
    try:
        yield shown
    finally:
        listener.close(shown)


def current() -> Listener:
    """Whoever shows the work now."""
    return _listener.get()


@contextmanager
def hidden() -> Iterator[None]:
    """Show no work inside the with-block: for parts of a whole that is on display itself."""
    with use(_QUIET):
        yield


@contextmanager
def use(listener: Listener) -> Iterator[None]:
    """Show all work inside the with-block on this listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
