"""Which widths to measure: a coarse grid, and more where times jump."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.tiny import Point

COARSE = 9
"""Widths per direction that a grid starts with."""

NARROW = 8
"""Layers of up to so many steps are measured at half a step as well."""

JUMP = 0.08
"""A grid is refined where a time is further than this share from what its neighbours give."""

_STAMP_US = 1.0
"""A runtime's profile has whole µs: times that differ by no more may be the same."""

_LOST = 0.03
"""What is no more than this share slower counts as equal when steps are looked for."""


class Extent(NamedTuple):
    """What of a kind of layer there is: its largest widths in and out, and which may shrink.

    The outputs of a classifier, say, may not: only its inputs are worth measuring.
    """

    full: Point
    free: tuple[bool, bool] = (True, True)


def widths(full: int, step: int, count: int = COARSE) -> list[int]:
    """About `count` multiples of the step, evenly spread, the full width, and half a step.

    What is narrower than a step is often computed in another way, which may be faster.
    """
    steps = list(range(step, full, step))
    if len(steps) > count - 1:
        picked = {round(i * (len(steps) - 1) / (count - 2)) for i in range(count - 1)}
        steps = [steps[i] for i in sorted(picked)]
    half = half_of(step)
    narrow = [half] if half is not None and half < full <= NARROW * step else []
    return [*narrow, *steps, full]


def half_of(step: int) -> int | None:
    """Half a step, where that is a width of its own."""
    return step // 2 if step >= 8 else None


def grid(spec: LayerSpec, extents: Iterable[Extent], step: int) -> list[Point]:
    """The points that a layer's table starts with, each once."""
    points = [point for extent in extents for point in _grid(spec, extent, step)]
    return list(dict.fromkeys(points))


def _grid(spec: LayerSpec, extent: Extent, step: int) -> list[Point]:
    full, free = extent
    if spec.kind == "layout":
        half = half_of(step)
        return [(half, half)] if half is not None and half < full[0] else []
    if not any(free):
        return [full]
    if spec.kind == "depthwise":
        return [(width, width) for width in widths(full[1], step)]
    if spec.kind == "grouped":
        # Of a grouped convolution whole groups go, in and out alike.
        groups = full[0] // spec.group_width
        ratio = full[1] / full[0]
        counts = widths(groups, max(1, step // math.gcd(step, spec.group_width)))
        return [
            (count * spec.group_width, round(count * spec.group_width * ratio)) for count in counts
        ]
    inside, outside = (
        widths(width, step) if may else [width] for width, may in zip(full, free, strict=True)
    )
    return list(itertools.product(inside, outside))


def refined(spec: LayerSpec, known: Mapping[Point, float], step: int) -> list[Point]:
    """Points between those where the time is not what its neighbours let expect."""
    wanted: list[Point] = []
    for axis in (0,) if spec.tied else (0, 1):
        lines: dict[int, list[Point]] = {}
        for point in known:
            lines.setdefault(0 if spec.tied else point[1 - axis], []).append(point)
        for line in lines.values():
            line.sort(key=lambda point: point[axis])
            for a, b, c in zip(line, line[1:], line[2:], strict=False):
                share = (b[axis] - a[axis]) / (c[axis] - a[axis])
                expected = known[a] + share * (known[c] - known[a])
                if abs(known[b] - expected) > max(JUMP * expected, _STAMP_US):
                    wanted += _between(spec, a, b, axis, step) + _between(spec, b, c, axis, step)
    return [point for point in dict.fromkeys(wanted) if point not in known]


def _between(spec: LayerSpec, low: Point, high: Point, axis: int, step: int) -> list[Point]:
    if spec.group_width:
        step = math.lcm(step, spec.group_width)
    middle = (low[axis] + high[axis]) // 2 // step * step
    if not low[axis] < middle < high[axis]:
        return []
    if spec.tied:
        return [(middle, round(middle * high[1] / high[0]))]
    return [(middle, low[1]) if axis == 0 else (low[0], middle)]


def step_of(times: Mapping[int, float]) -> int:
    """How far apart the widths are that are worth having: a power of two.

    Twice a step will do as well, as long as most of the widths that it leaves out are hardly
    faster than the fastest that is wider and stays: most, as single times may be disturbed.
    times: by width, all of a range.
    """
    step = 1
    while 2 * step <= len(times):
        left_out = [w for w in times if w % step == 0 and w % (2 * step)]
        losses = []
        for width in left_out:
            wider = [times[w] for w in times if w > width and w % (2 * step) == 0]
            if wider:
                losses.append(min(wider) / times[width] - 1)
        if losses and statistics.median_low(losses) > _LOST:
            break
        step *= 2
    return step
