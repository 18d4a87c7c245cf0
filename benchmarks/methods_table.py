"""The table of benchmarks/methods.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

HEADINGS = ("method", "after the cut", "fine-tuned", "MACs", "parameters", "faster", "minutes")


def document(found: dict[str, Any]) -> str:
    """The table in Markdown, the best first."""
    rows = [row for row in found["rows"] if "error" not in row]
    names = sorted({row["method"] for row in rows}, key=lambda n: -_mean(_of(rows, n), _final))
    original = [row["top1"]["original"] for row in rows if "original" in row["top1"]]
    lines = [f"Original: {statistics.mean(original):.2f} %.", ""] if original else []
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(_cells(name, _of(rows, name))) + " |" for name in names]
    lines += [
        f"\n{row['method']}, seed {row['seed']}: {row['error']}"
        for row in found["rows"]
        if "error" in row
    ]
    return "\n".join(lines) + "\n"


def _of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["method"] == name]


def _final(row: dict[str, Any]) -> float:
    return float(row["top1"]["finetuned"])


def _mean(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], float]) -> float:
    return statistics.mean(key(row) for row in rows)


def _cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
    finals = [_final(row) for row in rows]
    spread = f" ± {statistics.stdev(finals):.2f}" if len(finals) > 1 else ""
    cut = [row["top1"]["cut"] for row in rows if "cut" in row["top1"]]
    speed = rows[0]["speedup"]
    return [
        name,
        f"{statistics.mean(cut):.2f}" if cut else "",
        f"{statistics.mean(finals):.2f}{spread}",
        f"{_mean(rows, lambda r: r['macs']):.1%}",
        f"{_mean(rows, lambda r: r['params']):.1%}",
        f"{speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]" if speed else "",
        f"{_mean(rows, lambda r: r['minutes']):.1f}",
    ]
