"""Work on several threads that ends together: with an error, or with Ctrl-C."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence

from prune2deploy import progress

GRACE_S = 5.0  # a probe tells its progress several times per second while it measures


class CalledOff(Exception):
    """Raised in the work of a thread that shall end."""


class _Stoppable:
    """A listener that passes everything on, and ends the work at its next sign of life."""

    def __init__(self, listener: progress.Listener, stop: threading.Event) -> None:
        self._listener = listener
        self._stop = stop

    def open(self, label: str, total: float | None) -> _StoppableTask:
        self.check()
        return _StoppableTask(self._listener.open(label, total), self.check)

    def close(self, task: progress.Task) -> None:
        assert isinstance(task, _StoppableTask)
        self._listener.close(task.shown)

    def check(self) -> None:
        if self._stop.is_set():
            raise CalledOff


class _StoppableTask:
    def __init__(self, shown: progress.Task, check: Callable[[], None]) -> None:
        self.shown = shown
        self._check = check

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        self._check()
        self.shown.advance(steps, info)


def side_by_side(chains: Sequence[Sequence[Callable[[], None]]]) -> None:
    """Make the calls of each chain one after the other, and the chains beside one another.

    A call that raises ends its chain; the others go on, and then the first error is raised. Ctrl-C
    ends all calls at the next progress that they report.
    """
    if len(chains) == 1:
        for call in chains[0]:
            call()
        return
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(chain: Sequence[Callable[[], None]], over: threading.Event) -> None:
        try:
            with progress.use(_Stoppable(progress.current(), stop)):
                for call in chain:
                    call()
        except CalledOff:
            pass
        except BaseException as err:
            errors.append(err)
        finally:
            over.set()

    # Events and not Thread.join, which takes a thread for ended once Ctrl-C has interrupted it.
    ends = [threading.Event() for _ in chains]
    for chain, over in zip(chains, ends, strict=True):
        run = contextvars.copy_context().run
        # Daemons: a call that hangs is not waited for when the program ends; its probe notices
        # that by itself.
        threading.Thread(target=run, args=(work, chain, over), daemon=True).start()
    try:
        for over in ends:
            over.wait()
    except BaseException:
        stop.set()
        latest = time.monotonic() + GRACE_S
        for over in ends:
            over.wait(max(0.0, latest - time.monotonic()))
        raise
    if errors:
        raise errors[0]
