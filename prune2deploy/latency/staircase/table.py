"""The measured times, in a plain file that can be looked at and passed on.

One file per device, runtime, version and number of threads. It only ever grows: what is in it is
not measured again.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from prune2deploy.errors import DeviceError
from prune2deploy.latency.staircase.grid import half_of
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.tiny import Point

FORMAT = 1

_LEAST = 0.25  # share of a node's time that is its own, whatever the profiler adds
_ADDED = ("inside_us", "beside_us")


@dataclass(frozen=True)
class Estimate:
    """A layer's time in µs; interpolated: between measured widths, not measured itself."""

    us: float
    interpolated: bool


@dataclass(frozen=True)
class Profiler:
    """What the runtime's profiler adds for each node of a run, in µs: to its time, and beside."""

    inside_us: float = 0.0
    beside_us: float = 0.0

    def own_us(self, us: float) -> float:
        """A node's time without what the profiler adds."""
        return max(us - self.inside_us, us * _LEAST)


@dataclass
class Table:
    """Times of layers on one device.

    conditions: what must be the same for the times to hold. step: widths that are multiples of it
    are on the good side of a step. profiler: what it adds; it is in `times` as well. None: not
    looked for yet. times: µs by the key of a spec and the widths.
    """

    path: Path
    conditions: dict[str, Any]
    step: int | None = None
    profiler: Profiler | None = None
    times: dict[str, dict[Point, float]] = field(default_factory=dict)

    def add(self, spec: LayerSpec, found: Mapping[Point, float]) -> None:
        """Take up times, in µs."""
        self.times.setdefault(spec.key, {}).update(found)

    def missing(self, spec: LayerSpec, points: Iterable[Point]) -> list[Point]:
        """Those that have not been measured."""
        known = self.times.get(spec.key, {})
        return [point for point in dict.fromkeys(points) if point not in known]

    def time(self, spec: LayerSpec, point: Point) -> Estimate:
        """Return a layer's time at these widths: measured, or along the measured staircase.

        A width between two steps takes as long as the next step up. Between measured steps times
        are interpolated, and beyond the last they grow with the width.

        Raises:
            DeviceError: nothing of this layer has been measured.
        """
        known = self.times.get(spec.key)
        if not known:
            raise DeviceError(f"The table {self.path} has no times of the layer '{spec.key}'.")
        step = self.step or 1
        if point in known:
            if any(width % (half_of(step) or step) for width in point):
                return Estimate(known[point], False)
            # On steps what is wider takes no less: more than that is what disturbed it.
            wider = [us for (a, b), us in known.items() if a >= point[0] and b >= point[1]]
            return Estimate(min(wider), False)
        # On the way up to a step nothing is gained, so what was measured there holds here.
        upper = [range(width, math.ceil(width / step) * step + 1) for width in point]
        if spec.tied:
            known = {(inside, inside): us for (inside, _), us in known.items()}
            upper[1] = upper[0]
        same = [one for one in known if one[0] in upper[0] and one[1] in upper[1]]
        if same:
            return Estimate(known[min(same)], False)
        raised = [_raised(upper[axis], {one[axis] for one in known}) for axis in (0, 1)]
        if spec.tied:
            line = {(0, outside): us for (_, outside), us in known.items()}
            return Estimate(_along(line, 0, raised[1]), True)
        return Estimate(_interpolated(known, (raised[0], raised[1])), True)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            "conditions": self.conditions,
            "step": self.step,
            "profiler": None if self.profiler is None else asdict(self.profiler),
            "unit": "microseconds per call of the layer, by channels in x channels out",
            "layers": {
                key: {f"{a}x{b}": round(us, 3) for (a, b), us in sorted(times.items())}
                for key, times in sorted(self.times.items())
            },
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as stream:
            json.dump(content, stream, indent=1)
            stream.write("\n")
        os.replace(stream.name, self.path)


def _raised(upper: range, measured: set[int]) -> int:
    """The width of the next step up, but not past the widest that was measured below it."""
    widest = max(measured)
    return widest if widest in upper else upper[-1]


def _interpolated(known: Mapping[Point, float], point: Point) -> float:
    """Between the nearest measured widths, in both directions."""
    lines: dict[int, list[int]] = {}
    for inside, outside in known:
        lines.setdefault(inside, []).append(outside)
    # Where steps were looked for, some widths were measured with few others.
    around = [a for a, some in lines.items() if min(some) <= point[1] <= max(some)]
    long = [a for a, some in lines.items() if len(some) > 1]
    insides = sorted(around or long or lines)
    low, high, share = _around(insides, point[0])
    first = _along(known, low, point[1])
    if low == high:
        return first * (point[0] / low if point[0] > low else 1.0)
    return first + share * (_along(known, high, point[1]) - first)


def _along(known: Mapping[Point, float], inside: int, outside: int) -> float:
    outsides = sorted(b for a, b in known if a == inside)
    low, high, share = _around(outsides, outside)
    first = known[inside, low]
    if low == high:
        return first * (outside / low if outside > low else 1.0)
    return first + share * (known[inside, high] - first)


def _around(widths: list[int], width: int) -> tuple[int, int, float]:
    """The measured widths below and above, and how far between them it lies."""
    place = bisect.bisect_left(widths, width)
    if place == 0:
        return widths[0], widths[0], 0.0
    if place == len(widths):
        return widths[-1], widths[-1], 0.0
    low, high = widths[place - 1], widths[place]
    return low, high, (width - low) / (high - low)


def table_path(conditions: Mapping[str, Any]) -> Path:
    """Where the table for these conditions is kept."""
    text = json.dumps(conditions, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    named = str(conditions.get("board") or conditions.get("cpu") or "device")
    plain = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")[:40]
    name = f"{plain}-{conditions['runtime']}-{conditions['threads']}t-{digest}.json"
    return tables_folder() / name


def tables_folder() -> Path:
    """Where all tables are kept."""
    return platformdirs.user_cache_path("prune2deploy") / "staircases"


def load_table(path: Path, conditions: Mapping[str, Any]) -> Table:
    """Return the table in this file; an empty one where there is none.

    Raises:
        DeviceError: it cannot be read, or is of another device, runtime or number of threads.
    """
    if not path.is_file():
        return Table(path, dict(conditions))
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise DeviceError(
                f"{path} has format {content['format']}, this version reads {FORMAT}. Remove it "
                "to have it measured anew."
            )
        layers = {
            key: {_point(widths): _time(us) for widths, us in times.items()}
            for key, times in content["layers"].items()
        }
        found, step = {**content["conditions"]}, content["step"]
        # Tables from before it was measured do not have it.
        added = content.get("profiler")
        profiler = None if added is None else Profiler(*(_time(added[one]) for one in _ADDED))
        if step is not None and not (isinstance(step, int) and step >= 1):
            raise ValueError(f"step is {step!r}, expected a number of channels")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DeviceError(
            f"{path} is not a table of times ({type(err).__name__}: {err}). Remove it to have it "
            "measured anew."
        ) from err
    other = sorted(k for k in {*found, *conditions} if found.get(k) != conditions.get(k))
    if other:
        told = "; ".join(f"{k}: {found.get(k)!r} there, {conditions.get(k)!r} here" for k in other)
        raise DeviceError(f"{path} holds times of something else ({told}). Name another file.")
    return Table(path, dict(conditions), step, profiler, layers)


def _time(us: Any) -> float:
    if not 0 <= float(us) < math.inf:
        raise ValueError(f"a time is {us!r}, expected microseconds")
    return float(us)


def _point(text: str) -> Point:
    inside, outside = text.split("x")
    return int(inside), int(outside)
