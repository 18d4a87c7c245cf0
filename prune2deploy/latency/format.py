"""A measurement as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prune2deploy.latency.profile import Latency, ProfileResult

if TYPE_CHECKING:
    from rich.table import Table


def format_result(result: ProfileResult) -> Table:
    """Return one row per model; every figure has its unit and its 95 % interval."""
    from rich.table import Table

    options = result.options
    title = f"{result.device}: {options.threads} thread(s), ms per batch [95 % interval]"
    # Not markup: the intervals' brackets, and whatever a file is called, are meant as they are.
    table = Table(title=escaped(title))
    table.add_column("model")
    for heading in ("batch", "median", "p90", "load", "first run", "memory MB", "speed-up"):
        table.add_column(heading, justify="right")
    speedups = {one.other: one for one in result.speedups}
    for one in result.latencies:
        faster = speedups.get(one.name)
        cells = [
            one.name,
            str(one.batch),
            _with_interval(one, "median"),
            _with_interval(one, "p90"),
            f"{one.load_ms:.1f}",
            f"{one.first_run_ms:.1f}",
            "unknown" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
            f"{faster.ratio:.3f} [{faster.low:.3f}, {faster.high:.3f}]" if faster else "baseline",
        ]
        table.add_row(*map(escaped, cells))
    return table


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _with_interval(latency: Latency, name: str) -> str:
    value = getattr(latency, f"{name}_ms")
    interval = getattr(latency, f"{name}_ci95_ms")
    if value is None:
        return latency.missing[name]
    if interval is None:
        return f"{value:.4g} [unknown]"
    return f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
