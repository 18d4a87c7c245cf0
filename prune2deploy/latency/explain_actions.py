"""What to do about time that pruning did not save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from prune2deploy.latency.explain_nodes import Widths, worth_having

# A kernel's start, threads waking up included, is of this order; below it widths hardly matter.
FIXED_MS = 0.02
# Time that is left of a layer, from which on it hardly shrank.
_HARDLY = 0.85
_MOVES = ("Reshape", "Transpose", "Concat", "Slice", "Split", "Gather", "Cast", "Pad", "Flatten")


@dataclass(frozen=True)
class Loss:
    """A layer's time beyond the ideal, in ms by cause; the parts add up to it."""

    uneven: float = 0.0
    widths: float = 0.0
    not_macs: float = 0.0
    memory: float = 0.0
    unfused: float = 0.0
    rest: float = 0.0

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the causes."""
        return tuple(one.name for one in fields(Loss))

    @property
    def largest(self) -> str:
        """Name of the cause that took most."""
        return max(self.names(), key=lambda key: getattr(self, key))


def action_of(
    loss: Loss,
    operator: str,
    widths: Widths | None,
    step: int | None,
    before_ms: float,
    after_ms: float,
) -> str:
    """Return the next best thing to do about one layer; empty where nothing is lost."""
    largest = loss.largest
    if after_ms == 0 or getattr(loss, largest) <= 0:
        return ""
    if largest == "widths" and widths is not None and step is not None:
        return widths_action(widths, step)
    if largest == "unfused":
        return "it was fused into another layer before: see what stands between them now"
    if 0 < after_ms < FIXED_MS and after_ms > _HARDLY * before_ms:
        return "fixed cost: fewer layers, not narrower ones"
    if largest == "memory":
        return "memory-bound: cut its input, or use smaller images"
    if largest == "not_macs":
        if operator.split("+")[0] in _MOVES:
            return "moves data: cut what goes in, or do without it"
        return "memory-bound: cut its input"
    if largest == "uneven":
        return "its MACs are costly: prune it more, and cheaper layers less"
    return "remove the block instead" if after_ms > _HARDLY * before_ms else ""


def widths_action(widths: Widths, step: int) -> str:
    """Say which widths are worth having: "make 40 channels 48 or 32"."""
    found = []
    sides = (
        [("", widths.outside)]
        if widths.depthwise
        else [
            ("out", widths.outside),
            ("in", widths.inside),
        ]
    )
    worth = {side: worth_having(width, step, halved=side == "in") for side, width in sides}
    off = [(side, width) for side, width in sides if width not in worth[side]]
    for side, width in off:
        down, up = worth[side]
        choice = f"{up} or {down}" if down else str(up)
        named = f" {side}" if side == "in" or len(off) > 1 else ""
        found.append(f"make {width} channels{named} {choice}")
    return ", ".join(found)


def advice(
    causes: Mapping[str, float],
    matters_ms: float,
    step: int | None,
    added: Mapping[str, float],
    timed: bool,
) -> tuple[str, ...]:
    """Return what to do about the causes that matter, the worst first."""
    most = max(added, key=lambda op: added[op], default="")
    by_time = (
        "The budget of time chose so: what it left is worth more than its time. If that is too "
        "slow, ask for less time; MACs say nothing here."
    )
    by_macs = (
        "Let time decide instead of MACs: a budget with latency_ms or speedup prunes where time "
        "is spent."
    )
    weighed = (
        f"The budget of time took widths off the step of {step} by their measured times; with "
        f"round_to: {step} in prune it takes whole steps only."
    )
    texts = {
        "uneven": by_time if timed else by_macs,
        "widths": weighed if timed else f"Prune again with round_to: {step} in prune.",
        "not_macs": "Remove whole blocks, or cut the channels that go into these layers: their "
        "time goes with the size of what they read and write.",
        "memory": "Cut the inputs of the layers that are bound by memory, or use smaller images; "
        "fewer filters alone bring little there.",
        "added": f"The runtime changes layouts ({most}): widths that are multiples of "
        f"{step or 'its block'} in all layers, and fewer operators without a blocked kernel, "
        "leave it less to change.",
        "unfused": "Find out why operators are no longer fused: most often what pruning put "
        "between them, such as an index or a padding.",
        "outside": "A fixed cost per run and per layer: fewer layers, not narrower ones, or a "
        "larger batch.",
        "disturbed": "Measure again on a quiet machine before anything is changed: prune2deploy "
        "profile ORIGINAL.onnx PRUNED.onnx --on DEVICE",
    }
    worst = sorted(causes, key=lambda key: -causes[key])
    return tuple(texts[key] for key in worst if key in texts and causes[key] > matters_ms)
