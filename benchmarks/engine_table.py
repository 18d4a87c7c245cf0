"""What `engine.py` prints from its findings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

SCALING = {
    "resnet": tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "densenet": ("densenet121", "densenet169", "densenet201"),
    "densenet, wider": ("densenet161",),
    "efficientnet": tuple(f"efficientnet_b{number}" for number in range(8)),
    "regnet_y": tuple(
        f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
    ),
}
"""Models of one design from small to large; densenet161 has a design of its own."""

UNKNOWN = "–"


def fastest(found: dict[str, Any]) -> dict[str, Any] | None:
    """The repeat of this tool that took the least time; None if none finished."""
    return min(found.get("timings", []), key=lambda timing: float(timing["seconds"]), default=None)


def exact_answer(found: dict[str, Any]) -> bool | None:
    """Whether the pruned model is the original without the removed channels; None: not known.

    Ours must also pass the engine's own comparison, and is judged by it alone where the
    comparison that serves both tools has no reference.
    """
    own, shared = found.get("equal"), found.get("exact")
    if own is False or shared is False:
        return False
    return own if shared is None else shared


def verdict(found: dict[str, Any]) -> str:
    """right; or the first thing that is wrong, or "unknown" where a check did not come to an end.

    "scale" is right but for the scale of attention, which follows the width of narrower heads.
    """
    if not found.get("timings"):
        return "prunes nothing" if found.get("prunes") is False else "fails"
    for check, wrong in (("prunes", "prunes nothing"), ("runs", "no run"), ("trains", "no step")):
        if found.get(check) is False:
            return wrong
    exact = exact_answer(found)
    if exact is False:
        return "scale" if found.get("exact_but_for_scale") else "not exact"
    known = exact and all(found.get(check) for check in ("prunes", "runs", "trains"))
    return "right" if known else "unknown"


def why(found: dict[str, Any]) -> str:
    """In a few words what a tool's error was, or nothing."""
    for name in ("error", "runs_error", "trains_error", "equal_error", "exact_error"):
        if name in found:
            message = found[name]["message"].splitlines() or [""]
            return f"{found[name]['type']}: {message[0][:110]}"
    if exact_answer(found) is False:
        return f"differs by {found.get('exact_difference', found.get('difference')):.1e}"
    return str(found.get("exact_note", found.get("note", "")))


def ratio(entry: dict[str, Any]) -> float | None:
    """The peer's seconds over ours, if both finished."""
    ours, peer = (fastest(entry.get(tool, {})) for tool in ("ours", "peer"))
    return float(peer["seconds"] / ours["seconds"]) if ours and peer else None


def outcome(entry: dict[str, Any]) -> str:
    """One line on a model, for the progress."""
    parts = []
    for tool in ("ours", "peer"):
        if tool in entry:
            best = fastest(entry[tool])
            seconds = f"{best['seconds']:.2f} s" if best else why(entry[tool])
            judged = f", {verdict(entry[tool])}" if best and "prunes" in entry[tool] else ""
            parts.append(f"{tool} {seconds}{judged}")
    times = ratio(entry)
    return "; ".join(parts) + (f"; {times:.1f}×" if times else "")


def comparison_table(document: dict[str, Any]) -> Table:
    """Two rows per model: ours, and the peer's."""
    exports = any(
        "onnx" in e.get(tool, {}) for e in document["models"] for tool in ("ours", "peer")
    )
    table = Table(
        title=f"Ours and the peer, Torch-Pruning {document['versions'].get('torch-pruning', '')}: "
        f"{document['setting']}, {document['threads']} thread(s)",
        **_STYLE,
    )
    table.add_column("model", overflow="fold")
    for heading in ("tool", "prunes", "runs", "trains", "exact", *(["ONNX"] if exports else [])):
        table.add_column(heading)
    numbers = ("seconds", "CPU s", "MiB", "MACs", "params", "channels", "peer/ours")
    for heading in numbers:
        table.add_column(heading, justify="right")
    for entry in document["models"]:
        for tool in ("ours", "peer"):
            last = tool == "peer"
            name = "" if last else entry["model"].split(":")[1]
            times = ratio(entry) if last else None
            cells = _cells(entry.get(tool, {}), exports)
            table.add_row(name, tool, *cells, f"{times:.1f}×" if times else "", end_section=last)
    return table


_STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}


def _cells(found: dict[str, Any], exports: bool) -> list[str]:
    checks = [_yes(found.get(check)) for check in ("prunes", "runs", "trains")]
    if not found.get("timings") and "prunes" not in found:
        checks[0] = "no"
    onnx = [_yes(found.get("onnx"))] if exports else []
    best = fastest(found)
    timing = [f"{best[name]:.2f}" for name in ("seconds", "cpu_seconds")] if best else [UNKNOWN] * 2
    memory = f"{best['peak_mib']:.0f}" if best else UNKNOWN
    shares = [_removed(found.get(name)) for name in ("macs", "params")]
    channels = str(found.get("cuttable_channels", UNKNOWN))
    return [*checks, _exact_cell(found), *onnx, *timing, memory, *shares, channels]


def _yes(answer: bool | None) -> str:
    return UNKNOWN if answer is None else "yes" if answer else "no"


def _exact_cell(found: dict[str, Any]) -> str:
    answer = exact_answer(found)
    if answer is None:
        return "?" if "exact_note" in found else UNKNOWN
    if not answer:
        return "scale" if found.get("exact_but_for_scale") else "no"
    return "norm" if found.get("norms") else "yes"


def _removed(before_and_after: list[int] | None) -> str:
    if not before_and_after:
        return UNKNOWN
    before, after = before_and_after
    return f"−{100 * (1 - after / before):.0f} %"


NOTES = (
    "seconds: trace, plan and cut of ours; the pruner's construction and step() of the peer. MiB: "
    "the process's peak. MACs, params: share removed. channels: output channels that can go.",
    "exact: the output is that of the original with the removed channels zeroed; norm: where "
    "LayerNorm and GroupNorm look at the kept channels only; scale: only if attention is also "
    "divided by the root of the narrower heads, which changes the function; ?: not checked.",
    "The peer is used as its examples use it. Those build googlenet and inception_v3 without "
    "auxiliary heads, and list torchvision's Swin and ShuffleNet as not working.",
)


def total_lines(document: dict[str, Any]) -> list[str]:
    """The sums, what is wrong, and where the peer can remove more."""
    models = document["models"]
    lines = [*NOTES, ""]
    for tool, title in (("ours", "Ours"), ("peer", "Torch-Pruning")):
        judged = [verdict(entry.get(tool, {})) for entry in models]
        others = [
            f"{judged.count(kind)} {kind}" for kind in dict.fromkeys(judged) if kind != "right"
        ]
        rest = f" ({', '.join(others)})" if others else ""
        lines.append(f"{title}: {judged.count('right')} of {len(models)} models right{rest}.")
    finished = [entry for entry in models if ratio(entry)]
    right = [e for e in finished if all(verdict(e[tool]) == "right" for tool in ("ours", "peer"))]
    for chosen, which in ((finished, "both finish"), (right, "both are right")):
        if chosen:
            lines.append(_seconds_line(chosen, which))
    slower = [f"{_name(e)} ({ratio(e):.2f}×)" for e in finished if (ratio(e) or 1) < 1]
    lines.append(f"Ours is slower on: {', '.join(slower) or 'none'}.")
    lines.append(f"The peer has more channels on: {', '.join(_peer_has_more(models)) or 'none'}.")
    lines.append("")
    for entry in models:
        for tool in ("ours", "peer"):
            judged_as = verdict(entry.get(tool, {}))
            if judged_as != "right":
                lines.append(f"{_name(entry)}, {tool}: {judged_as}. {why(entry.get(tool, {}))}")
    return lines


def _seconds_line(models: list[dict[str, Any]], which: str) -> str:
    sums = dict.fromkeys(("ours", "peer"), 0.0)
    for entry in models:
        for tool in sums:
            sums[tool] += (fastest(entry[tool]) or {})["seconds"]
    ratios = [ratio(entry) or math.nan for entry in models]
    return (
        f"The {len(models)} models that {which}: ours {sums['ours']:.1f} s, peer "
        f"{sums['peer']:.1f} s, ratio of the sums {sums['peer'] / sums['ours']:.1f}; per model "
        f"{min(ratios):.1f} to {max(ratios):.1f}, median {float(np.median(ratios)):.1f}. "
        "Large models decide the sums, the median counts each alike."
    )


def _peer_has_more(models: list[dict[str, Any]]) -> list[str]:
    found = []
    for entry in models:
        ours, peer = (entry.get(t, {}).get("cuttable_channels", 0) for t in ("ours", "peer"))
        if peer > ours:
            found.append(f"{_name(entry)} ({peer} against {ours}; it is {verdict(entry['peer'])})")
    return found


def _name(entry: dict[str, Any]) -> str:
    return str(entry["model"].split(":")[1])


def steps_table(document: dict[str, Any]) -> Table:
    """Trace, plan and cut of ours, one by one."""
    table = Table(title=f"Our steps, {document['threads']} thread(s)", **_STYLE)
    table.add_column("model")
    table.add_column("step")
    for heading in ("seconds", "CPU seconds", "memory added, MiB", "peak, MiB"):
        table.add_column(heading, justify="right")
    for entry in document["models"]:
        best = fastest(entry["ours"])
        if best is None:
            table.add_row(_name(entry), why(entry["ours"]))
            continue
        rows = {**best["steps"], "together": best}
        for step, found in rows.items():
            seconds = [f"{found[key]:.2f}" for key in ("seconds", "cpu_seconds")]
            added = f"{found['added_mib']:.0f}" if "added_mib" in found else ""
            peak = f"{found['peak_mib']:.0f}"
            last = step == "together"
            table.add_row(_name(entry), step, *seconds, added, peak, end_section=last)
    return table


def scaling_table(document: dict[str, Any]) -> Table:
    """Seconds of ours against the size of the model."""
    table = Table(title=f"Trace, plan and cut, {document['threads']} thread(s)", **_STYLE)
    for heading in ("family", "model"):
        table.add_column(heading)
    for heading in ("channels", "layers", "channels × layers", "seconds", "µs per 1000"):
        table.add_column(heading, justify="right")
    for family, points in _by_family(document).items():
        for number, (name, channels, layers, seconds) in enumerate(points, 1):
            sizes = [f"{n:,}" for n in (channels, layers, channels * layers)]
            each = f"{seconds / (channels * layers) * 1e9:.1f}"
            last = number == len(points)
            table.add_row(family, name, *sizes, f"{seconds:.3f}", each, end_section=last)
    return table


def scaling_lines(document: dict[str, Any]) -> list[str]:
    """The fitted exponents, and whether the time grows no faster than the size."""
    lines = []
    for family, points in _by_family(document).items():
        exponent = fitted_exponent(points)
        if exponent is not None:
            held = "no faster than linear" if exponent <= 1 else "FASTER THAN LINEAR"
            lines.append(f"{family}: seconds ~ (channels × layers)^{exponent:.2f}, {held}.")
    return lines


Point = tuple[str, int, int, float]
"""Model, sum of the output channels, number of layers, seconds."""


def fitted_exponent(points: list[Point]) -> float | None:
    """Slope of log(seconds) over log(channels × layers); None for a single model."""
    if len(points) < 2:
        return None
    sizes = np.log([channels * layers for _, channels, layers, _ in points])
    slope, _ = np.polyfit(sizes, np.log([seconds for *_, seconds in points]), 1)
    return float(slope)


def _by_family(document: dict[str, Any]) -> dict[str, list[Point]]:
    found = {_name(entry): entry["ours"] for entry in document["scaling"]}
    families: dict[str, list[Point]] = {}
    for family, names in SCALING.items():
        for name in names:
            best = fastest(found.get(name, {}))
            if best:
                point = (name, found[name]["channels"], found[name]["layers"], best["seconds"])
                families.setdefault(family, []).append(point)
    return families
