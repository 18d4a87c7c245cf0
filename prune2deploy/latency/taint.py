"""Whether something disturbed a measurement: reasons in words, from what the probe recorded.

A tainted figure is not thrown away and not corrected, it is marked. What is not known taints
nothing. The limits are for measurements whose figures are medians and paired ratios, which bear a
little of everything; on a build machine that shares its CPUs with others, waiting and stolen time
of 1 to 3 % were usual and did not move the paired ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune2deploy.latency.statistics import Floats

    State = Mapping[str, Any]

CLOCK_CHANGE = 0.05
"""A clock that differs by more than this share between two looks has changed."""

WAITING = 0.10
"""Share of the time that the measuring thread may wait for its CPU."""

STOLEN = 0.10
"""Share of one CPU's time that the hypervisor may give to others."""

SWAPPED_PAGES = 100
"""Pages read from or written to swap by whoever: 0.4 MB."""

DRIFT = 0.05
"""Change of the block medians from the first to the last fifth."""

_DRIFT_SURE = 0.001
_TICKS_PER_S = 100
_NOW_BITS = {
    0: "under-voltage",
    1: "the frequency was capped",
    2: "the processor was throttled",
    3: "the soft temperature limit was reached",
}
_SINCE_BOOT = 16
_COOLERS = ("processor", "cpufreq", "thermal-cpufreq", "cpu-idle", "devfreq")
"""Cooling devices that slow down what is measured; fans are another matter."""


def taints(answer: Mapping[str, Any], typical: Sequence[Floats]) -> tuple[str, ...]:
    """Return what disturbed a measurement, one sentence each; nothing if nothing is known to have.

    Args:
        answer: the probe's. typical: per model its typical time in each block, shape (blocks,).
    """
    found: list[str] = []
    for rule in _RULES:
        found += rule(_Record(answer))
    found += _drift(answer, typical)
    return tuple(found)


class _Record:
    """The states of a measurement in the order they were read."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        state = answer["state"] or {}
        self.start, self.warm, self.end = (
            state.get(when) or {} for when in ("start", "warm", "end")
        )
        self.during: list[State] = [self.warm, *(answer.get("watch") or []), self.end]
        turns = answer["turns"]
        self.measured_s = sum(sum(turn["samples_ns"]) for turn in turns) / 1e9

    def rise(self, key: str) -> float | None:
        """How much a number rose from warm to end."""
        before, after = self.warm.get(key), self.end.get(key)
        return None if before is None or after is None else after - before

    def rises(self, key: str) -> dict[str, float]:
        """Those of several counters that rose, and by how much."""
        before, after = self.warm.get(key) or {}, self.end.get(key) or {}
        risen = {name: after[name] - before[name] for name in after if name in before}
        return {name: by for name, by in risen.items() if by > 0}


def _throttling(record: _Record) -> Iterator[str]:
    for key, whose in (("throttle_count", "core"), ("package_throttle_count", "package")):
        for name, by in record.rises(key).items():
            yield f"the processor throttled {by:.0f} times against heat ({whose} of {name})"
    for name, by in record.rises("overcurrent_count").items():
        yield f"{by:.0f} over-current events ({name}): often a weak supply"
    yield from _coolers(record)


def _coolers(record: _Record) -> Iterator[str]:
    before = record.warm.get("cooling_state") or {}
    highest: dict[str, float] = {}
    for state in record.during:
        for name, level in (state.get("cooling_state") or {}).items():
            highest[name] = max(highest.get(name, 0), level)
    for name, level in highest.items():
        if level > before.get(name, 0) and any(kind in name.lower() for kind in _COOLERS):
            yield f"the system slowed the processor down against heat ({name}: level {level:.0f})"


def _raspberry_pi(record: _Record) -> Iterator[str]:
    bits = [state["pi_throttled"] for state in record.during if state.get("pi_throttled")]
    before = record.warm.get("pi_throttled") or 0
    for bit, what in _NOW_BITS.items():
        since_boot = 1 << (bit + _SINCE_BOOT)
        now = any(value >> bit & 1 for value in bits)
        if now or any(value & since_boot and not before & since_boot for value in bits):
            yield f"{what} during the measurement (vcgencmd get_throttled)"


def _clocks(record: _Record) -> Iterator[str]:
    seen: dict[str, list[float]] = {}
    for state in record.during:
        for name, khz in (state.get("clock_khz") or {}).items():
            seen.setdefault(name, []).append(khz / 1e6)
        if state.get("pi_clock_hz"):
            seen.setdefault("the Arm cores", []).append(state["pi_clock_hz"] / 1e9)
    for name, ghz in seen.items():
        low, high = min(ghz), max(ghz)
        if low > 0 and high / low > 1 + CLOCK_CHANGE:
            yield f"the clock of {name} was between {low:.2f} and {high:.2f} GHz"


def _power_mode(record: _Record) -> Iterator[str]:
    before, after = record.start.get("power_mode"), record.end.get("power_mode")
    if before and after and before != after:
        yield f"the power mode changed from {before['name']} to {after['name']}"


def _others(record: _Record) -> Iterator[str]:
    waited = record.rise("waited_for_cpu_ns")
    if waited is not None and record.measured_s and waited / 1e9 > WAITING * record.measured_s:
        share = waited / 1e9 / record.measured_s
        yield f"other programs had the CPU: {share:.0%} of the time was spent waiting for it"
    stolen = record.rise("stolen_ticks")
    if stolen is not None and stolen / _TICKS_PER_S > STOLEN * record.measured_s:
        share = stolen / _TICKS_PER_S / record.measured_s
        yield f"the hypervisor gave {share:.0%} of a CPU's time to other machines"
    pages = sum(record.rises("swap_pages").values())
    if pages > SWAPPED_PAGES:
        yield f"memory was short: {pages:.0f} pages were swapped"
    halted = record.rises("cgroup_throttled").get("periods", 0)
    if halted:
        yield f"the cgroup's CPU quota was used up {halted:.0f} times"


_RULES: tuple[Callable[[_Record], Iterator[str]], ...] = (
    _throttling,
    _raspberry_pi,
    _clocks,
    _power_mode,
    _others,
)


def _drift(answer: Mapping[str, Any], typical: Sequence[Floats]) -> list[str]:
    """Whether the times of all models went one way: the first to the last block."""
    import numpy as np
    from scipy.stats import kendalltau

    names = [model["name"] for model in answer["models"]]
    found = []
    for name, blocks in zip(names, typical, strict=True):
        part = max(1, len(blocks) // 5)
        change = float(np.median(blocks[-part:]) / np.median(blocks[:part]) - 1)
        sure = kendalltau(np.arange(len(blocks)), blocks).pvalue < _DRIFT_SURE
        if sure and abs(change) > DRIFT:
            found.append(f"the times of '{name}' drifted by {change:+.0%} from start to end")
    return found
