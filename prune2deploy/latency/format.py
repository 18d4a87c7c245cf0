"""A measurement as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prune2deploy.latency.profile import Latency, ProfileResult

if TYPE_CHECKING:
    from rich.console import Group


def format_result(result: ProfileResult) -> Group:
    """Return one row per model; every figure has its unit and its 95 % interval.

    Below the table stands what disturbed the measurement.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    options = result.options
    title = f"{result.device}: {options.threads} thread(s), ms per batch [95 % interval]"
    # Not markup: the intervals' brackets, and whatever a file is called, are meant as they are.
    table = Table(title=escaped(title))
    table.add_column("model", overflow="fold")
    with_energy = any(one.energy_mj is not None for one in result.latencies)
    headings = ["batch", "median", "p90", "p99", "load", "first run", "memory MB"]
    headings += ["mJ per run (net)"] if with_energy else []
    for heading in (*headings, "speed-up"):
        table.add_column(heading, justify="right")
    speedups = {one.other: one for one in result.speedups}
    for one in result.latencies:
        faster = speedups.get(one.name)
        cells = [
            one.name,
            str(one.batch),
            _with_interval(one, "median"),
            _with_interval(one, "p90"),
            _with_interval(one, "p99"),
            f"{one.load_ms:.1f}",
            f"{one.first_run_ms:.1f}",
            "unknown" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
            *([_energy(one)] if with_energy else []),
            f"{faster.ratio:.3f} [{faster.low:.3f}, {faster.high:.3f}]" if faster else "baseline",
        ]
        table.add_row(*map(escaped, cells))
    return Group(table, *(Text(f"TAINTED: {why}", style="bold yellow") for why in result.tainted))


def escaped(text: str) -> str:
    """The text as it is, where rich would read markup."""
    from rich.markup import escape

    return escape(text)


def _energy(latency: Latency) -> str:
    if latency.energy_mj is None:
        return "unknown"
    net = "" if latency.net_energy_mj is None else f" ({latency.net_energy_mj:.3g})"
    return f"{latency.energy_mj:.3g}{net}"


def _with_interval(latency: Latency, name: str) -> str:
    value = getattr(latency, f"{name}_ms")
    interval = getattr(latency, f"{name}_ci95_ms")
    if value is None:
        return latency.missing[name]
    if interval is None:
        return f"{value:.4g} [unknown]"
    return f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
