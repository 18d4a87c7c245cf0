"""Long work on show: bars with the time left on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, TextIO

from prune2deploy import progress
from prune2deploy.cli.output import safe_console
from prune2deploy.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

# Shorter work is not worth a line when it is over, or a bar that only flashes up.
_WORTH_A_LINE_S = 2.0
_WORTH_A_BAR_S = 0.5
_BETWEEN_LINES_S = 10.0
_BAR_WIDTH = 28


class Display(progress.Listener, Protocol):
    """A listener that can also say something in between."""

    def say(self, text: str) -> None:
        """Show a line of text, apart from the progress."""

    def pinned(self, picture: Callable[[], RenderableType]) -> AbstractContextManager[bool]:
        """Keep a picture on show above the progress, if there is a terminal; gives whether."""


@contextmanager
def display() -> Iterator[Display]:
    """Choose how to show work on standard error."""
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        shown = Bars(safe_console(stderr=True))
        try:
            yield shown
        finally:
            shown.stop()
    else:
        yield Lines(sys.stderr)


class Shown:
    """One piece of work: how far it is and how long it will take."""

    def __init__(
        self,
        label: str,
        total: float | None,
        changed: Callable[[Shown], None],
        clock: Callable[[], float],
    ) -> None:
        self.label = label
        self.total = total
        self.done = 0.0
        self.info = ""
        self._changed = changed
        self._clock = clock
        self._start = clock()

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        """Move on; see `progress.Task`."""
        self.done += steps
        if info is not None:
            self.info = info
        self._changed(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._start

    @property
    def left_s(self) -> float | None:
        """Seconds left at the average speed so far, or None where nobody knows."""
        if not self.total or self.done <= 0:
            return None
        return max(0.0, self.elapsed_s * (self.total - self.done) / self.done)

    @property
    def amount(self) -> str:
        """How much is done: '3/20', '15 %' of a single whole, or nothing without a total."""
        if not self.total:
            return ""
        if self.total == 1:
            return f"{self.done:.0%}".replace("%", " %")
        return f"{self.done:.0f}/{self.total:.0f}"

    def ending(self) -> str:
        """The line that remains of it."""
        stopped = bool(self.total) and self.done < (self.total or 0) * 0.999
        return f"{self.label}: {f'stopped at {self.amount}, ' if stopped else ''}" + (
            duration(self.elapsed_s) + (f" ({self.info})" if self.info else "")
        )


def duration(seconds: float) -> str:
    """Return a length of time as people say it: '42 s', '3 min 05 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Lines:
    """Plain text for logs and pipes: a line at the start, one every ten seconds, one at the end."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last_line: dict[Shown, float] = {}

    def open(self, label: str, total: float | None) -> Shown:
        """Begin a piece of work."""
        shown = Shown(label, total, self._advanced, self._clock)
        self._last_line[shown] = self._clock()
        self.say(f"{label} ...")
        return shown

    def close(self, task: progress.Task) -> None:
        """End a piece of work."""
        assert isinstance(task, Shown)
        del self._last_line[task]
        if task.elapsed_s >= _WORTH_A_LINE_S:
            self.say(task.ending())

    def say(self, text: str) -> None:
        """Write a line."""
        # One write, so that lines of several threads stay apart.
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def pinned(self, picture: Callable[[], RenderableType]) -> AbstractContextManager[bool]:
        """Show no picture: lines cannot be taken back."""
        return nullcontext(False)

    def _advanced(self, shown: Shown) -> None:
        now = self._clock()
        if now - self._last_line[shown] < _BETWEEN_LINES_S:
            return
        self._last_line[shown] = now
        left = None if shown.left_s is None else f"about {duration(shown.left_s)} left"
        done = f"{shown.label} {shown.amount}".strip()
        self.say(", ".join(filter(None, [done, shown.info, left])))


class Bars:
    """Bars on a terminal; finished work leaves one line."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self._clock = clock
        self._open: list[Shown] = []
        self._pinned: Callable[[], RenderableType] | None = None
        self._lock = threading.Lock()  # work begins and ends on several threads
        self._console = console
        # What the live area shows is asked for anew at every refresh: nothing to keep in step.
        self._live = Live(
            get_renderable=self._picture, console=console, transient=True, refresh_per_second=8
        )

    def open(self, label: str, total: float | None) -> Shown:
        """Begin a piece of work."""
        shown = Shown(label, total, _nothing, self._clock)
        with self._lock:
            self._open.append(shown)
            self._live.start()
        return shown

    def close(self, task: progress.Task) -> None:
        """End a piece of work."""
        assert isinstance(task, Shown)
        with self._lock:
            self._open.remove(task)
            if not self._open and self._pinned is None:
                self._live.stop()
        if task.elapsed_s >= _WORTH_A_LINE_S:
            self.say(task.ending())

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def pinned(self, picture: Callable[[], RenderableType]) -> Iterator[bool]:
        """Show a picture above the bars, asked for anew at every refresh."""
        with self._lock:
            self._pinned = picture
            self._live.start()
        try:
            yield True
        finally:
            with self._lock:
                self._pinned = None
                if not self._open:
                    self._live.stop()

    def stop(self) -> None:
        """Remove whatever is still on show."""
        self._live.stop()

    def _picture(self) -> Group:
        shown = [one for one in self._open if one.elapsed_s >= _WORTH_A_BAR_S]
        below = bars(shown, plain=not self._console.encoding.startswith("utf"))
        return below if self._pinned is None else above(self._pinned(), below)


def _nothing(shown: Shown) -> None:
    """A bar is redrawn by the clock, not when something advances."""


def above(picture: RenderableType, below: Group) -> Group:
    """Return both, one above the other."""
    from rich.console import Group

    return Group(picture, below)


def bars(work: Sequence[Shown], *, plain: bool) -> Group:
    """Return one line per piece of work: label, bar, amount, time left, info.

    Args:
        work: what to show.
        plain: draw with letters that every encoding has.
    """
    from rich.console import Group
    from rich.text import Text

    full, empty = ("#", "-") if plain else ("━", "─")
    width = max((len(one.label) for one in work), default=0)
    lines = []
    for one in work:
        # What may be cut off on a narrow terminal comes last.
        line = Text(f"{one.label:{width}} ", no_wrap=True, overflow="ellipsis")
        if one.total:
            filled = round(_BAR_WIDTH * min(1.0, one.done / one.total))
            line.append(full * filled, "green")
            line.append(empty * (_BAR_WIDTH - filled), "bright_black")
            line.append(f" {one.amount} ")
        left = one.left_s
        line.append(duration(one.elapsed_s) if left is None else f"{duration(left)} left", "cyan")
        line.append(f"  {one.info}", "dim")
        lines.append(line)
    return Group(*lines)
