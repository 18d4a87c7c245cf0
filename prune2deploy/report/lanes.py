"""Where things stand in the picture of a network: layers in columns, groups in lanes.

Layers stand one below the other in the order in which they run, in as many columns as make
the picture a good page. Each group has a lane to their left, from the first layer that produces
it or reads it to the last: what an addition couples hangs on one lane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prune2deploy.report.network import Layer

Key = int | str
"""What a lane carries: the number of a group, or the name of a layer with frozen channels."""

BOX_WIDTH, BOX_HEIGHT = 280.0, 34.0
GAP, BLOCK_GAP = 7.0, 8.0
READ, WRITE = 10.0, 25.0
"""How far below the top of a box its reads come in and its channels go out."""
ARROWS = 30.0
"""Between the nearest lane and the boxes."""
HEAD = 26.0
"""Above and below a column, for lanes that come from or go to another one."""
BETWEEN = 46.0
_PAGE = 1.5
"""Width over height that is aimed at."""


@dataclass(frozen=True)
class Lane:
    """One stretch of a lane in a column.

    x: to the left of the boxes, counted from their edge. top, bottom: where it begins and ends.
    enters, leaves: whether it goes on in the column before or behind.
    """

    key: Key
    x: float
    top: float
    bottom: float
    enters: bool
    leaves: bool


@dataclass(frozen=True)
class Column:
    """Layers that stand below one another: their numbers, tops of their boxes, and the lanes.

    left: x of the boxes' left edge. height: of the whole column.
    """

    layers: range
    tops: tuple[float, ...]
    lanes: tuple[Lane, ...]
    left: float
    height: float

    @property
    def right(self) -> float:
        """x of the boxes' right edge."""
        return self.left + BOX_WIDTH


def arrange(layers: Sequence[Layer], coupled: Sequence[bool]) -> list[Column]:
    """Divide layers into columns so that the picture gets the shape of a page.

    coupled: per group whether several layers produce it; such lanes stand further out.
    """
    spans = _spans(layers)
    most = max(1, math.ceil(len(layers) / 8))
    pages = [_columns(layers, spans, coupled, count) for count in range(1, min(most, 16) + 1)]
    return min(pages, key=_distance_from_page)


def sources(layer: Layer, known: set[str]) -> list[Key]:
    """What a layer reads, of the lanes that there are."""
    return [*sorted(layer.reads), *sorted(layer.reads_frozen & known)]


def targets(layer: Layer) -> list[Key]:
    """The lanes that a layer's channels go out on."""
    return [*layer.groups, *([layer.name] if layer.parts[None] else [])]


def _spans(layers: Sequence[Layer]) -> dict[Key, tuple[int, int]]:
    """Per lane, first and last time it is used; layer n reads at 2n and writes at 2n + 1."""
    known = {layer.name for layer in layers}
    used: dict[Key, list[int]] = {}
    read: set[Key] = set()
    for number, layer in enumerate(layers):
        for key in sources(layer, known):
            used.setdefault(key, []).append(2 * number)
            read.add(key)
        for key in targets(layer):
            used.setdefault(key, []).append(2 * number + 1)
    # Frozen channels that nobody reads under their own name need no lane.
    return {k: (min(t), max(t)) for k, t in used.items() if not isinstance(k, str) or k in read}


def _distance_from_page(columns: Sequence[Column]) -> float:
    height = max(column.height for column in columns)
    return abs(math.log(columns[-1].right / height / _PAGE))


def _columns(
    layers: Sequence[Layer],
    spans: dict[Key, tuple[int, int]],
    coupled: Sequence[bool],
    count: int,
) -> list[Column]:
    columns: list[Column] = []
    right = 0.0
    for numbers in _divided(layers, count):
        tops, y = [], HEAD
        for number in numbers:
            if number > numbers.start:
                y += BOX_HEIGHT + GAP
                y += BLOCK_GAP * (_block(layers[number]) != _block(layers[number - 1]))
            tops.append(y)
        height = y + BOX_HEIGHT + HEAD
        lanes = _lanes(spans, numbers, tops, height, coupled)
        reach = max((lane.x for lane in lanes), default=0.0)
        left = right + (BETWEEN if columns else 0.0) + reach + 8.0
        columns.append(Column(numbers, tuple(tops), tuple(lanes), left, height))
        right = columns[-1].right
    return columns


def _divided(layers: Sequence[Layer], count: int) -> list[range]:
    """Runs of layers of about equal length that end where a block of the model ends."""
    total = len(layers)
    slack = max(1, total // count // 6)
    bounds = [0]
    for number in range(1, count):
        aim = bounds[-1] + round((total - bounds[-1]) / (count - number + 1))
        near = range(max(aim - slack, bounds[-1] + 1), min(aim + slack, total - 1) + 1)
        if near:
            bounds.append(
                min(near, key=lambda n: (_shared(layers[n - 1], layers[n]), abs(n - aim)))
            )
    bounds.append(total)
    return [range(a, b) for a, b in pairwise(bounds)]


def _block(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def _shared(one: Layer, other: Layer) -> int:
    """How many modules around them two layers have in common."""
    pairs = zip(one.name.split("."), other.name.split("."), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), 0)


def _lanes(
    spans: dict[Key, tuple[int, int]],
    numbers: range,
    tops: Sequence[float],
    height: float,
    coupled: Sequence[bool],
) -> list[Lane]:
    """Place the lanes of a column: short ones next to the boxes, what couples layers outside."""
    first, last = 2 * numbers.start, 2 * numbers.stop - 1
    here = {k: s for k, s in spans.items() if s[0] <= last and s[1] >= first}

    def order(key: Key) -> tuple[bool, int, int]:
        low, high = max(here[key][0], first), min(here[key][1], last)
        return isinstance(key, int) and coupled[key], high - low, -low

    taken: list[list[tuple[int, int]]] = []
    places: dict[Key, int] = {}
    for key in sorted(here, key=order):
        low, high = max(here[key][0], first), min(here[key][1], last)
        fits = (n for n, used in enumerate(taken) if all(high < a or b < low for a, b in used))
        place = next(fits, len(taken))
        if place == len(taken):
            taken.append([])
        taken[place].append((low, high))
        places[key] = place
    step = 13.0 if len(taken) <= 16 else 9.0

    def y(time: int) -> float:
        return tops[time // 2 - numbers.start] + (WRITE if time % 2 else READ)

    return [
        Lane(
            key,
            ARROWS + place * step,
            y(here[key][0]) if here[key][0] >= first else HEAD / 2,
            y(here[key][1]) if here[key][1] <= last else height - HEAD / 2,
            here[key][0] < first,
            here[key][1] > last,
        )
        for key, place in places.items()
    ]
