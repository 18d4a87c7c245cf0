"""The verdict: what the run came to, how sure that is, and whether the gates held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prune2deploy.report.html.contents import RunContents, named
from prune2deploy.report.numbers import count_text, milliseconds, percent_change, size_text
from prune2deploy.report.proportions import SHARES, difference_interval

Tone = Literal["good", "bad", "doubt", "plain"]


@dataclass(frozen=True)
class Card:
    """One figure of the verdict. lines: what stands under it. tone: how it is coloured."""

    label: str
    value: str
    lines: tuple[str, ...]
    tone: Tone = "plain"
    doubt: str = ""


@dataclass(frozen=True)
class Verdict:
    """headline: one sentence. cards: the figures behind it. gates: whether they held."""

    headline: str
    gates: str
    tone: Tone
    cards: tuple[Card, ...]


def verdict(run: RunContents) -> Verdict:
    """Judge a run by the network that its gates look at."""
    speeds = [_speed(run, one) for one in run.metrics.latency]
    accuracy = _accuracy(run)
    size = _size(run)
    gates, tone = _gates(run)
    said = [_said(run, one) for one in run.metrics.latency]
    parts = [*(said or ["speed not measured"]), _size_said(run), _accuracy_said(run)]
    text = "; ".join(parts)
    unmeasured = [
        Card(f"Speed on {one.device}", "not measured", (one.message.splitlines()[0],), "doubt")
        for one in run.metrics.latency_failures
    ]
    return Verdict(
        headline=f"{text[0].upper()}{text[1:]}.",
        gates=gates,
        tone=tone,
        cards=(*speeds, *unmeasured, accuracy, size, _macs(run)),
    )


def _speed(run: RunContents, measured: Mapping[str, Any]) -> Card:
    device = measured["device"]
    faster = named(measured["speedups"], "other", run.judged)
    old = measured["latencies"][0]
    new = named(measured["latencies"], "name", run.judged)
    label = f"Speed on {device}"
    if faster is None or new is None:
        return Card(label, "not measured", (f"'{run.judged}' is not among the models.",), "doubt")
    ratio, low, high = (float(faster[key]) for key in ("ratio", "low", "high"))
    before, after = (
        milliseconds(one["median_ms"], one["median_ci95_ms"]).split(" [")[0] for one in (old, new)
    )
    lines = [
        f"95 % interval {_ends(low, high)}, from {faster['blocks']} paired blocks",
        f"median {before} before, {after} after",
    ]
    if measured["attempts"] > 1:
        # Chosen among several: whoever reads the figure should know.
        lines.append(f"the least tainted of {measured['attempts']} attempts")
    tone: Tone = "good" if low > 1 else "bad" if high < 1 else "doubt"
    if low <= 1 <= high:
        lines.append("The interval includes 1: no difference is shown.")
    doubt = ""
    if measured["tainted"]:
        tone, doubt = "doubt", f"Tainted, not to be relied on: {'; '.join(measured['tainted'])}"
    return Card(label, f"{ratio:.2f}×", tuple(lines), tone, doubt)


def _ends(low: float, high: float) -> str:
    """Both ends, with more digits where two would not tell them apart."""
    digits = 2 if f"{low:.2f}" != f"{high:.2f}" else 3
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _said(run: RunContents, measured: Mapping[str, Any]) -> str:
    faster = named(measured["speedups"], "other", run.judged)
    if faster is None:
        return f"speed on {measured['device']} not measured"
    ratio, low, high = (float(faster[key]) for key in ("ratio", "low", "high"))
    mark = " (tainted)" if measured["tainted"] else ""
    where = f"on {measured['device']}{mark}"
    if low > 1:
        return f"{ratio:.2f}× faster {where}"
    return f"{1 / ratio:.2f}× slower {where}" if high < 1 else f"no faster {where}"


def _accuracy(run: RunContents) -> Card:
    metrics = run.metrics
    name = metrics.metric
    old, new = metrics.before.metrics[name], run.judged_metrics[name]
    change = new - old
    interval = accuracy_interval(run)
    better = change >= 0 if metrics.higher_is_better else change <= 0
    lines = [f"{name} {old:.2f} before, {new:.2f} after"]
    tone: Tone = "good" if better else "plain"
    if interval is None:
        lines.append("No interval: this metric is no share of images.")
    else:
        low, high = interval
        ends = f"{_signed(low)} to {_signed(high)}"
        lines.append(f"95 % interval {ends}, from {run.test_images:,} test images")
        if low <= 0 <= high:
            lines.append("The interval includes 0: no change is shown.")
        elif not better:
            tone = "bad"
    label = "Accuracy" if name == "top1" else name
    return Card(label, f"{_signed(change)}{_points(name)}", tuple(lines), tone)


def accuracy_interval(run: RunContents) -> tuple[float, float] | None:
    """95 % interval of the metric's change in points; None where the metric is no share."""
    name, images = run.metrics.metric, run.test_images
    if name not in SHARES or images is None:
        return None
    old, new = run.metrics.before.metrics[name] / 100, run.judged_metrics[name] / 100
    low, high = difference_interval(old, new, images)
    return 100 * low, 100 * high


def _accuracy_said(run: RunContents) -> str:
    name = run.metrics.metric
    change = run.judged_metrics[name] - run.metrics.before.metrics[name]
    what = "accuracy" if name == "top1" else name
    return f"{what} {_signed(change)}{_points(name)}"


def _signed(change: float) -> str:
    """With a real minus sign; a change that rounds to nothing has none."""
    text = f"{change:+.2f}"
    return "±0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _points(name: str) -> str:
    return " points" if name in SHARES else ""


def _size(run: RunContents) -> Card:
    old, new = run.metrics.before.onnx_bytes, run.judged_bytes
    before, after = run.metrics.before.params, run.metrics.after.params
    lines = (
        f"{size_text(old)} before, {size_text(new)} after",
        f"{count_text(before)} parameters before, {count_text(after)} after",
    )
    return Card("ONNX file", _changed(old, new), lines, "good" if new < old else "plain")


def _size_said(run: RunContents) -> str:
    old, new = run.metrics.before.onnx_bytes, run.judged_bytes
    share = abs(new / old - 1) * 100
    if round(share) == 0:
        return "file of the same size"
    return f"file {share:.0f} % {'smaller' if new < old else 'larger'}"


def _macs(run: RunContents) -> Card:
    old, new = run.metrics.before.macs, run.metrics.after.macs
    lines = (f"{count_text(old)} before, {count_text(new)} after", "for one sample; not a time")
    return Card("Multiply-accumulates", _changed(old, new), lines)


def _changed(old: float, new: float) -> str:
    return percent_change(old, new).replace("-", "−")


def _gates(run: RunContents) -> tuple[str, Tone]:
    gates = run.metrics.gates
    if not gates:
        return "The recipe sets no gates.", "plain"
    failed = [gate.name for gate in gates if not gate.held]
    if failed:
        return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}", "bad"
    # A gate that held by leave of allow_tainted says so in its note.
    doubted = any(gate.note for gate in gates)
    count = {1: "The gate", 2: "Both gates"}.get(len(gates), f"All {len(gates)} gates")
    if doubted:
        return f"{count} held, by tainted figures, which the recipe allows", "doubt"
    return f"{count} held", "good"
