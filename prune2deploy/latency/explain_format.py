"""An explanation for people: the sentence, a waterfall of bars, the worst layers, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prune2deploy.latency.format import escaped

if TYPE_CHECKING:
    from rich.table import Table

    from prune2deploy.latency.explain import Explanation

WORST = 15
_BAR = 40  # characters of the longest bar
_BLOCK = "█"


@dataclass(frozen=True)
class Bar:
    """One step of the waterfall: from where to where, in ms. total: it stands on the ground."""

    label: str
    start_ms: float
    end_ms: float
    total: bool

    @property
    def text(self) -> str:
        """Its figure; a step has a sign."""
        change = self.end_ms - self.start_ms
        return f"{self.end_ms:.3f} ms" if self.total else f"{change:+.3f} ms"


def waterfall(explanation: Explanation) -> list[Bar]:
    """Return the bars from the original's time over the ideal to the pruned network's time."""
    original, ideal = explanation.original_ms, explanation.ideal_ms
    bars = [
        Bar("original", 0.0, original, True),
        Bar("saved by fewer MACs", original, ideal, False),
        Bar("promised by the MACs", 0.0, ideal, True),
    ]
    at = ideal
    for one in explanation.causes:
        label = f"{one.title} {one.detail}" if one.key == "widths" else one.title
        bars.append(Bar(label, at, at + one.ms, False))
        at += one.ms
    return [*bars, Bar("measured", 0.0, explanation.pruned_ms, True)]


def format_explanation(explanation: Explanation) -> tuple[Table | str, ...]:
    """Return what to print, in order."""
    parts: list[Table | str] = [explanation.sentence, _chart(waterfall(explanation))]
    parts += [f"{one.title}: {one.detail}" for one in explanation.causes if _told(one.key)]
    parts.append(_layers(explanation))
    if explanation.actions:
        parts.append("What to do, the most promising first:")
        parts += [f"{place}. {text}" for place, text in enumerate(explanation.actions, 1)]
    return (*parts, *explanation.notes)


def _told(key: str) -> bool:
    return key in ("added", "disturbed")


def _chart(bars: list[Bar]) -> str:
    """Bars as lines of text, of one width each."""
    lowest = min(0.0, *(min(one.start_ms, one.end_ms) for one in bars))
    highest = max(max(one.start_ms, one.end_ms) for one in bars)
    scale = _BAR / ((highest - lowest) or 1.0)
    labels = max(len(one.label) for one in bars)
    figures = max(len(one.text) for one in bars)
    lines = []
    for one in bars:
        left, right = sorted((one.start_ms, one.end_ms))
        first = round((left - lowest) * scale)
        # Where a step is too short for a character, it is still seen.
        count = max(round((right - lowest) * scale) - first, 1 if right > left else 0)
        bar = " " * first + _BLOCK * count
        lines.append(f"{one.label:<{labels}}  {one.text:>{figures}}  {bar}".rstrip())
    return "\n".join(lines)


def _layers(explanation: Explanation) -> Table:
    from rich.table import Table

    table = Table(title=escaped(f"{explanation.device}: layers that lose most"))
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    for heading in ("before ms", "after ms", "MACs left", "time left", "lost ms"):
        table.add_column(heading, justify="right")
    table.add_column("next best action", overflow="fold")
    for one in explanation.layers[:WORST]:
        row = (
            one.name,
            one.operator,
            _ms(one.before_ms),
            _ms(one.after_ms),
            _share(one.macs_share),
            _share(one.time_share),
            f"{one.lost_ms:+.3f}",
            one.action,
        )
        table.add_row(*map(escaped, row))
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
