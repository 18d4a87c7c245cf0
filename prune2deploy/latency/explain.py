"""Why a pruned network is not as much faster as its MACs promised: the lost time, by cause.

The original's time, times the share of MACs that is left, is the ideal. What the pruned network
takes beyond it is split among causes, layer by layer; a cause that helped is negative. What no
cause accounts for is called so: the causes and this rest add up to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prune2deploy.errors import DeviceError
from prune2deploy.latency.explain_actions import Loss, action_of, advice
from prune2deploy.latency.explain_nodes import (
    Executed,
    FileTimes,
    Widths,
    padding_step,
    read_times,
)
from prune2deploy.latency.layer_names import Key
from prune2deploy.latency.layers import LayersResult

# A layer with this many times the time per MAC of the network's best is not bound by computing.
# Kernels of one runtime differ by 2 to 3 with a layer's form, and more with nothing but memory.
MEMORY_BOUND = 4.0
# What counts for the best: a layer with less of the time is too short to be timed well.
_BEST_MIN_SHARE = 0.02
# Of the pruned network's time; less is not worth a word.
_MATTERS = 0.02
_AGREES = 1.1

TITLES = {
    "uneven": "MACs were cut where they cost less time",
    "widths": "widths off the step",
    "not_macs": "layers that MACs do not decide",
    "memory": "layers bound by memory",
    "added": "nodes that the runtime added",
    "unfused": "operators no longer fused",
    "outside": "fixed cost outside the nodes",
    "disturbed": "a disturbed measurement",
    "rest": "not explained",
}


@dataclass(frozen=True)
class Measured:
    """What was measured in turns, without the profiler: the original's median, the speed-up."""

    original_ms: float
    speedup: float
    tainted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """A part of the time beyond the ideal, in ms; negative where it helped. key: of TITLES."""

    key: str
    ms: float
    detail: str = ""

    @property
    def title(self) -> str:
        """In words."""
        return TITLES[self.key]


@dataclass(frozen=True)
class LayerLoss:
    """One layer: ms before and after (None: not run by itself), shares kept, and what to do.

    macs_share: MACs after over before; None where it has none. lost_ms: time beyond the whole
    network's ideal share, by cause in `loss`. lost_ms of all layers is not the whole loss.
    """

    name: str
    operator: str
    before_ms: float | None
    after_ms: float | None
    macs_share: float | None
    time_share: float | None
    lost_ms: float
    loss: Loss
    action: str


@dataclass(frozen=True)
class Explanation:
    """promised, measured: speed-ups. Times in ms. causes: largest first, `rest` last.

    step: widths that are multiples of it waste nothing; None where it is not known.
    """

    device: str
    promised: float
    measured: float
    original_ms: float
    ideal_ms: float
    pruned_ms: float
    causes: tuple[Cause, ...]
    layers: tuple[LayerLoss, ...]
    actions: tuple[str, ...]
    notes: tuple[str, ...]
    step: int | None

    @property
    def lost_ms(self) -> float:
        """What the pruned network takes beyond the ideal."""
        return self.pruned_ms - self.ideal_ms

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        head = f"MACs promised {self.promised:.2f} times, {self.measured:.2f} were measured"
        if self.lost_ms <= _MATTERS * self.pruned_ms:
            return f"{head}: nothing is lost."
        first = max(self.causes, key=lambda one: one.ms)
        of = f"({first.ms:.3g} of {self.lost_ms:.3g} ms)"
        most = "most" if first.ms > self.lost_ms / 2 else "the largest part"
        if first.key == "rest":
            return f"{head}; {most} is explained by nothing that was found {of}."
        return f"{head}; {most} is lost to: {first.title} {of}."

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"sentence": self.sentence, **asdict(self)}


def explain(
    result: LayersResult,
    measured: Measured | None = None,
    step: int | None = None,
    *,
    timed: bool = False,
) -> Explanation:
    """Split what a pruned network takes beyond its MACs' share of the original's time.

    Args:
        result: of two files, the original first.
        measured: None takes the profile's plain runs.
        step: of the device's staircase; None looks for channels that the runtime padded.
        timed: whether the network was pruned for a time, which need not be advised then.

    Raises:
        DeviceError: there are not two files, or no MACs can be counted in them.
    """
    before, after = _two_files(result)
    kept = after.macs / before.macs
    plain = [one.plain_ms for one in result.models]
    known = measured or Measured(plain[0], plain[0] / plain[1])
    pruned_ms = known.original_ms / known.speedup
    ideal_ms = known.original_ms * kept
    step = step or padding_step((before, after))
    losses = _layer_losses(before, after, kept, step)
    found = {key: math.fsum(getattr(one.loss, key) for one in losses) for key in Loss.names()}
    found["added"] = _total(after.added_ms) - kept * _total(before.added_ms)
    outside = [_outside(one.outside_ms, one.profiled_ms, one.plain_ms) for one in result.models]
    found["outside"] = outside[1] - kept * outside[0]
    if known.tainted:
        # What the clean look of the profile does not show as well.
        found["disturbed"] = (pruned_ms - ideal_ms) - (plain[1] - kept * plain[0])
    causes = _causes(found, before, after, pruned_ms - ideal_ms, step, known.tainted)
    return Explanation(
        device=result.device,
        promised=1 / kept,
        measured=known.speedup,
        original_ms=known.original_ms,
        ideal_ms=ideal_ms,
        pruned_ms=pruned_ms,
        causes=causes,
        layers=tuple(sorted(losses, key=lambda one: -one.lost_ms)),
        actions=advice(
            {one.key: one.ms for one in causes}, _MATTERS * pruned_ms, step, after.added_ms, timed
        ),
        notes=_notes(result, before, after, known if measured else None, step),
        step=step,
    )


def _two_files(result: LayersResult) -> tuple[FileTimes, FileTimes]:
    if len(result.models) != 2:
        raise DeviceError(
            f"An explanation compares two files, the original and the pruned one; there are "
            f"{len(result.models)}."
        )
    before, after = (
        read_times(one.path, facts["nodes"])
        for one, facts in zip(result.models, result.answer["models"], strict=True)
    )
    for one, times in zip(result.models, (before, after), strict=True):
        if not times.macs:
            raise DeviceError(
                f"No MACs can be counted in {one.path}: it has no Conv, Gemm or MatMul whose "
                "shapes are known. Export it with a fixed input size."
            )
    return before, after


def _total(added: Any) -> float:
    return math.fsum(added.values())


def _outside(outside_ms: float, profiled_ms: float, plain_ms: float) -> float:
    """Time outside the nodes, less what the profiler itself takes there."""
    return max(0.0, outside_ms - max(0.0, profiled_ms - plain_ms))


def _layer_losses(
    before: FileTimes, after: FileTimes, kept: float, step: int | None
) -> list[LayerLoss]:
    best = _best_ms_per_mac(before)
    keys = dict.fromkeys([*before.layers, *after.layers])
    return [
        _layer_loss(before.layers.get(key), after.layers.get(key), kept, step, best, key, before)
        for key in keys
    ]


def _best_ms_per_mac(times: FileTimes) -> float:
    """Return the least time per MAC of the layers that take a share of the time worth the name."""
    whole = math.fsum(one.time_ms for one in times.layers.values())
    rates = [
        one.time_ms / one.macs
        for one in times.layers.values()
        if one.macs and one.time_ms >= _BEST_MIN_SHARE * whole
    ]
    return min(rates, default=math.inf)


def _layer_loss(
    old: Executed | None,
    new: Executed | None,
    kept: float,
    step: int | None,
    best: float,
    key: Key,
    before: FileTimes,
) -> LayerLoss:
    one = new or old
    assert one is not None
    old_ms, new_ms = (old.time_ms if old else 0.0), (new.time_ms if new else 0.0)
    lost = new_ms - kept * old_ms
    macs = (old.macs if old else 0, new.macs if new else 0)
    if any(macs):
        loss = _of_macs(old, new, kept, step, best)
    elif new is not None and old is None and key in before.keys:
        loss = Loss(unfused=lost)
    else:
        loss = Loss(not_macs=lost)
    operators = dict.fromkeys(found.operator for found in (old, new) if found is not None)
    return LayerLoss(
        name=(old or one).name,
        operator=" → ".join(operators),
        before_ms=old.time_ms if old else None,
        after_ms=new.time_ms if new else None,
        macs_share=macs[1] / macs[0] if macs[0] else None,
        time_share=new_ms / old_ms if old_ms else None,
        lost_ms=lost,
        loss=loss,
        action=action_of(loss, one.operator, new.widths if new else None, step, old_ms, new_ms),
    )


def _of_macs(
    old: Executed | None, new: Executed | None, kept: float, step: int | None, best: float
) -> Loss:
    """Split a layer's time beyond kept x before: uneven, then widths, memory, and the rest."""
    if old is None or not old.macs:
        return Loss(rest=new.time_ms if new else 0.0)
    share = new.macs / old.macs if new else 0.0
    uneven = (share - kept) * old.time_ms
    if new is None:
        return Loss(uneven=uneven)
    beyond = new.time_ms - share * old.time_ms
    widths = _width_loss(old.widths, new.widths, share * old.time_ms, beyond, step)
    rest = beyond - widths
    computed = new.macs / new.widths.useful(step) if step and new.widths else new.macs
    if rest > 0 and computed and new.time_ms / computed > MEMORY_BOUND * best:
        return Loss(uneven=uneven, widths=widths, memory=rest)
    return Loss(uneven=uneven, widths=widths, rest=rest)


def _width_loss(
    old: Widths | None, new: Widths | None, ideal_ms: float, beyond_ms: float, step: int | None
) -> float:
    """What padding to the step accounts for, and no more than there is to account for."""
    if step is None or old is None or new is None:
        return 0.0
    expected = ideal_ms * (old.useful(step) / new.useful(step) - 1)
    if expected > 0:
        return min(expected, max(beyond_ms, 0.0))
    return max(expected, min(beyond_ms, 0.0))


def _causes(
    found: dict[str, float],
    before: FileTimes,
    after: FileTimes,
    whole: float,
    step: int | None,
    tainted: Sequence[str],
) -> tuple[Cause, ...]:
    known = {key: ms for key, ms in found.items() if key != "rest" and ms}
    operators = sorted({*before.added_ms, *after.added_ms})
    details = {
        "widths": f"of {step}" if step else "",
        "added": ", ".join(
            f"{op} {before.added_ms.get(op, 0):.3g} → {after.added_ms.get(op, 0):.3g} ms"
            for op in operators
        ),
        "disturbed": " ".join(tainted),
    }
    causes = [Cause(key, ms, details.get(key, "")) for key, ms in known.items()]
    rest = Cause("rest", whole - math.fsum(known.values()))
    return (*sorted(causes, key=lambda one: -one.ms), rest)


def _notes(
    result: LayersResult,
    before: FileTimes,
    after: FileTimes,
    measured: Measured | None,
    step: int | None,
) -> tuple[str, ...]:
    notes = []
    plain = [one.plain_ms for one in result.models]
    if measured and not 1 / _AGREES < measured.speedup * plain[1] / plain[0] < _AGREES:
        notes.append(
            f"The measurement says {measured.speedup:.2f} times, the profile's plain runs "
            f"{plain[0] / plain[1]:.2f}: the layers' times are not quite those of the measurement."
        )
    if measured is None:
        notes.append(
            f"The run has no measurement on {result.device}: the speed-up is from plain runs "
            "of one model after the other, without turns and without an interval."
        )
    if step is None:
        notes.append(
            "No step of widths is known on this device: no table of layer times is there (a "
            "budget of time makes one) and the runtime pads no channels, so that no time was "
            "ascribed to widths."
        )
    unknown = sorted({*before.unknown, *after.unknown})
    if unknown:
        notes.append(
            f"The shapes of {len(unknown)} layers are not in the files, so their MACs are not "
            f"counted: {', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}."
        )
    return tuple(notes)
