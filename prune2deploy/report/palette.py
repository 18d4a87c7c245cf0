"""Colours of the groups, the same on a terminal and in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Six are Okabe's and Ito's (https://jfly.uni-koeln.de/color/); the violet was searched for so that
# all stay apart for readers who lack one kind of cone, and show on white and on black. Seven is
# prime: in models that repeat a block of two, three or four groups, neighbours still differ.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#7937DB",
)
FROZEN = "#9A9A9A"
# Dash patterns of SVG: solid first, then one more for each round through the colours.
DASHES = ("", "7 3", "2 2.5", "9 2.5 2 2.5")


@dataclass(frozen=True)
class Style:
    """How a group is drawn. dash: an SVG dash pattern, empty for a solid line."""

    colour: str
    dash: str = ""


def group_styles(coupled: Sequence[bool]) -> list[Style]:
    """One style per group: coupled ones first, so that they share none while styles last.

    coupled: per group whether several layers produce it.
    """
    order = sorted(range(len(coupled)), key=lambda number: not coupled[number])
    found = [Style(FROZEN)] * len(coupled)
    for rank, number in enumerate(order):
        turn, colour = divmod(rank, len(COLOURS))
        found[number] = Style(COLOURS[colour], DASHES[turn % len(DASHES)])
    return found


def tint(colour: str, share: float) -> str:
    """The colour mixed with white; share 1 leaves it, 0 gives white."""
    return "#" + "".join(f"{round(255 - (255 - value) * share):02X}" for value in _rgb(colour))


def ink(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour."""
    linear = [(value / 255) ** 2.2 for value in _rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # WCAG contrast with white falls below that with black at this luminance.
    return "#FFFFFF" if luminance < 0.179 else "#000000"


def _rgb(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
