"""A measurement as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prune2deploy.latency.results import Latency, ProfileResult

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

_ALL = ("median", "p90", "p95", "p99")
# From the widest to the narrowest: which percentiles, and what stands between a figure and its
# interval. The first one that fits is shown.
_LAYOUTS = (
    (_ALL, " "),
    (_ALL, "\n"),
    (("median", "p90", "p99"), "\n"),
    (("median", "p90"), "\n"),
)
_NAME_WIDTH = 16  # longer names are folded before a percentile is left out


class Shown:
    """A result as rich prints it, in the width that there is; see `format_result`."""

    def __init__(self, result: ProfileResult) -> None:
        self.result = result

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.measure import Measurement
        from rich.text import Text

        endless = options.update(max_width=10_000)
        longest = max(len(one.name) for one in self.result.latencies)
        for percentiles, between in _LAYOUTS:
            times = _times(self.result, percentiles, between)
            width = Measurement.get(console, endless, times).maximum
            if width - max(longest - _NAME_WIDTH, 0) <= options.max_width:
                break
        yield times
        left_out = [name for name in _ALL if name not in percentiles]
        if left_out:
            yield Text(f"{' and '.join(left_out)}: in a wider terminal", style="dim")
        yield _details(self.result)
        for reason in self.result.tainted:
            yield Text(f"TAINTED: {reason}", style="bold yellow")


def format_result(result: ProfileResult) -> Shown:
    """Return what to print: times and speed-ups, the rest, and a line per reason of a taint.

    Every time has its unit and its 95 % interval. Median and 90th percentile are always there, the
    others where the width allows.
    """
    return Shown(result)


def _times(result: ProfileResult, percentiles: Sequence[str], between: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    options = result.options
    title = f"{result.device}: {options.threads} thread(s), ms per batch [95 % interval]"
    # Not markup: the intervals' brackets, and whatever a file is called, are meant as they are.
    table = Table(title=Text(title))
    table.add_column("model", overflow="fold")
    # The narrowest has to fit somehow; in the others it is names that are folded.
    whole = (percentiles, between) != _LAYOUTS[-1]
    for heading in (*percentiles, "speed-up"):
        table.add_column(heading, justify="right", no_wrap=whole)
    speedups = {one.other: one for one in result.speedups}
    for one in result.latencies:
        faster = speedups.get(one.name)
        cells = [
            one.name,
            *(_with_interval(one, name, between) for name in percentiles),
            f"{faster.ratio:.3f}{between}[{faster.low:.3f}, {faster.high:.3f}]"
            if faster
            else "baseline",
        ]
        table.add_row(*map(Text, cells))
    return table


def _details(result: ProfileResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("model", overflow="fold")
    headings = ["batch", "samples", "load\nms", "first run\nms", "memory\nMB"]
    known = any(one.energy_mj is not None for one in result.latencies)
    for heading in headings + ["energy mJ\n(above idle)"] * known:
        table.add_column(heading, justify="right")
    for one in result.latencies:
        cells = [
            one.name,
            str(one.batch),
            str(one.samples),
            "" if one.load_ms is None else f"{one.load_ms:.1f}",
            "" if one.first_run_ms is None else f"{one.first_run_ms:.1f}",
            "unknown" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
        ]
        table.add_row(*map(Text, cells + [_energy(one)] * known))
    return table


def _energy(latency: Latency) -> str:
    if latency.energy_mj is None:
        return "unknown"
    return f"{latency.energy_mj:.3g} ({latency.net_energy_mj:.3g})"


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _with_interval(latency: Latency, name: str, between: str) -> str:
    value = getattr(latency, f"{name}_ms")
    interval = getattr(latency, f"{name}_ci95_ms")
    if value is None:
        return latency.missing[name].replace(", ", f",{between}")
    if interval is None:
        return f"{value:.4g}{between}[unknown]"
    return f"{value:.4g}{between}[{interval[0]:.4g}, {interval[1]:.4g}]"
