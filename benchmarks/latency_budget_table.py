"""Markdown of what `latency_budget.py` measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(found: Mapping[str, Any]) -> str:
    """Three tables per number of threads."""
    parts = []
    for threads, models in sorted(found.items()):
        parts += [f"Threads: {threads}", _same_macs(models), _same_time(models), _budgets(models)]
    return "\n\n".join(parts)


def _table(heading: str, rows: list[list[str]]) -> str:
    columns = heading.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['time']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _same_macs(models: Mapping[str, Any]) -> str:
    rows = []
    for name, parts in models.items():
        for label, one in parts.get("same_macs", {}).items():
            if "error" in one:
                rows.append([name, label, one["error"], *[""] * 4])
                continue
            importance, predicted = one.get("importance"), one.get("predicted")
            rows.append(
                [
                    name,
                    label,
                    _interval(one),
                    f"{one['macs']:.3f}",
                    f"{one['macs'] / one['time']:.2f}",
                    "" if importance is None else f"{importance:.3f}",
                    "" if predicted is None else f"{predicted / one['time'] - 1:+.1%}",
                ]
            )
    heading = "| widths by | time | MACs | speed-up over MACs reduction | importance | prediction"
    return _table(heading, rows)


def _same_time(models: Mapping[str, Any]) -> str:
    rows = []
    for name, parts in models.items():
        one = parts.get("same_time", {})
        if "error" in one:
            rows.append([name, one["error"], *[""] * 6])
        elif one:
            plain, timed = one["MACs, round_to 8"], one["time"]
            rows.append(
                [
                    name,
                    _interval(plain),
                    _interval(timed),
                    f"{plain['importance']:.3f}",
                    f"{timed['importance']:.3f}",
                    f"{plain['macs']:.3f}",
                    f"{timed['macs']:.3f}",
                    str(len(timed["used"])),
                ]
            )
    heading = "| time by MACs | time by time | importance by MACs | by time | MACs | MACs | rounds"
    return _table(heading, rows)


def _budgets(models: Mapping[str, Any]) -> str:
    rows = []
    for name, parts in models.items():
        for share, one in parts.get("budgets", {}).items():
            if "error" in one:
                rows.append([name, share, one["error"], *[""] * 6])
                continue
            gap = one["gap"]
            rows.append(
                [
                    name,
                    share,
                    f"{one['used'][one['chosen']]:.1%}",
                    str(len(one["used"])),
                    f"{one['errors'][0]:+.1%}",
                    "" if len(one["errors"]) == 1 else f"{one['errors'][-1]:+.1%}",
                    f"{one['macs']:.3f}",
                    f"{one['importance']:.3f}",
                    "" if gap is None else f"{gap:.3f}",
                ]
            )
    heading = (
        "| share of the time | used | rounds | first error | last error | MACs | importance | gap"
    )
    return _table(heading, rows)
