"""Results on standard output: tables and text that stay whole in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prune2deploy.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

# A pipe has no width; wide enough that no table is squeezed into eighty columns.
_PIPE_WIDTH = 240


def safe_console(**options: Any) -> Console:
    """Return a rich console that passes no control characters on but its own.

    Names of layers, devices and classes come from files and boards of others.
    """
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield (
                    segment if segment.control else Segment(printable(segment.text), segment.style)
                )

    return SafeConsole(**options)


def console() -> Console:
    """Return a console on standard output."""
    return safe_console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def show(*results: RenderableType) -> None:
    """Print tables, or texts as they are: without markup and never wrapped in a pipe."""
    out = console()
    for result in results:
        out.print(result, markup=False, soft_wrap=isinstance(result, str))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of plain text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # As Text, or brackets in somebody's error message would be taken for markup.
        shown.add_row(*map(Text, row))
    return shown


def make_output_safe() -> None:
    """Let characters that the terminal's encoding lacks become '?' instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
