"""Whether something disturbed a measurement: the rules, each with its threshold.

A rule looks at what the probe recorded and says in words, with figures, what was wrong. What a
machine does not tell can taint nothing. Samples are never dropped for it: a tainted result is
shown as it is, and called so.

What a small shared machine (2 cores, 3 ms runs and shorter) showed: at a load below its number of
cores the measuring thread waited 0.03 to 0.5 % of the time for its CPU, 0 to 0.2 % was stolen,
and the first and last fifth of the blocks differed by 0 to 1 %, once by 2 %. With as many busy
programs as cores it waited 20 to 64 %; medians stayed where they were, high percentiles did not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune2deploy.latency.statistics import Floats

State = Mapping[str, Any]
Answer = Mapping[str, Any]
Rule = Callable[[Answer], list[str]]

# Turbo clocks move by a step or two of 100 MHz, 2 to 3 %; a throttled one falls further.
CLOCK_CHANGE = 0.05
# Ten times what the thread waits on a machine that is not overloaded, see above.
WAITED_SHARE = 0.05
# Counted over all CPUs, so that not all of it need be ours: not less than waiting.
STOLEN_SHARE = 0.05
# 1 MB in pages of 4 KB. Less is the kernel tidying up; a model that was swapped out takes more.
SWAPPED_PAGES = 256
# Both: a drift that cannot be chance, and one that matters to the medians. Small drifts of
# 1 to 2 % with small p were seen on machines that were warm and quiet.
DRIFT_P = 0.001
DRIFT_CHANGE = 0.05
# These lower the clock of an idle CPU, and it is idle at the first look and after the last run.
_IDLING_GOVERNORS = ("ondemand", "conservative", "schedutil", "powersave", "interactive")

# Cooling devices that slow down what is measured: a fan does not, and others dim a screen.
_SLOWING = ("processor", "cpu", "devfreq", "gpu", "throttle", "powerclamp")

_PI_BITS = ("under-voltage", "a capped clock", "throttling", "the soft temperature limit")
_PI_SINCE_BOOT = 16
# Of nvidia-smi. Left out: idle, clocks set by the user, synchronised with others, the display's.
_GPU_BITS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def taints(answer: Answer, typical: Floats) -> tuple[str, ...]:
    """Return what disturbed a measurement, a sentence each; empty where nothing is known of.

    Args:
        answer: the probe's.
        typical: the first model's typical time in each block, in the order of blocks, ns, shape
            (blocks,).
    """
    found = [reason for rule in _RULES for reason in rule(answer)]
    return (*found, *_drift(answer, typical))


def _state(answer: Answer, moment: str) -> State:
    return (answer.get("state") or {}).get(moment) or {}


def _during(answer: Answer) -> list[State]:
    """What was read between the end of the warm-up and the end of the last run, in order."""
    watch: Sequence[State] = answer.get("watch") or []
    return [_state(answer, "warm"), *watch, _state(answer, "end")]


def _known(states: Sequence[State], key: str) -> list[Any]:
    return [state[key] for state in states if state.get(key) is not None]


def _series(states: Sequence[State], key: str) -> dict[str, list[float]]:
    """Return {name: its values in order} of a key that holds {name: value}."""
    found: dict[str, list[float]] = {}
    for values in _known(states, key):
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return found


def _risen(answer: Answer, key: str) -> list[tuple[str, float, float]]:
    """Return (name, first, last) of each counter that rose during the measurement, most first."""
    series = _series(_during(answer), key)
    risen = [(name, vs[0], max(vs)) for name, vs in series.items() if max(vs) > vs[0]]
    return sorted(risen, key=lambda one: one[1] - one[2])


def _throttled(answer: Answer) -> list[str]:
    reasons = []
    for key, what in (("throttle_count", "core"), ("package_throttle_count", "package")):
        risen = _risen(answer, key)
        if risen:
            name, first, last = risen[0]  # all CPUs of a package count the same event
            reasons.append(
                f"the processor throttled: the {what} throttle count of {name} rose by "
                f"{last - first:.0f} to {last:.0f} during the measurement"
            )
    return reasons


def _overcurrent(answer: Answer) -> list[str]:
    return [
        f"over-current: the event count {name} rose by {last - first:.0f} to {last:.0f} during "
        "the measurement"
        for name, first, last in _risen(answer, "overcurrent_count")
    ]


def _pi(answer: Answer) -> list[str]:
    during = _known(_during(answer), "pi_throttled")
    start = (_known([_state(answer, "start")], "pi_throttled") or during or [0])[0]
    reasons = []
    for bit, what in enumerate(_PI_BITS):
        times = sum(flags >> bit & 1 for flags in during)
        since = _PI_SINCE_BOOT + bit
        if times:
            reasons.append(
                f"the board reported {what} in {times} of {len(during)} looks during the "
                f"measurement (bit {bit} of get_throttled)"
            )
        # A bit that was set before the warm-up tells nothing of what happened since.
        elif not start >> since & 1 and any(flags >> since & 1 for flags in during):
            reasons.append(
                f"the board reported {what} since the warm-up began (bit {since} of get_throttled)"
            )
    return reasons


def _cooling(answer: Answer) -> list[str]:
    reasons = []
    start = _state(answer, "start").get("cooling_state") or {}
    for name, values in _series(_during(answer), "cooling_state").items():
        before = max(start.get(name) or 0, 0)  # -1 is how some say that they are off
        if max(values) > before and any(kind in name.lower() for kind in _SLOWING):
            reasons.append(
                f"the cooling device '{name}' slowed the machine: state {max(values):.0f}, "
                f"{before:.0f} at the start"
            )
    return reasons


def _measured_domains(answer: Answer, domains: Sequence[str]) -> list[str]:
    """Return the clock domains of the measured CPUs, all of them where those are not known.

    A domain is named by its first CPU ("policy4"), as the kernel does, or by its only one.
    """
    first = {name: int(number[0]) for name in domains if (number := re.findall(r"\d+$", name))}
    cpus = answer.get("cpus")
    if not cpus or len(first) < len(domains):
        return list(domains)
    below = [[name for name in domains if first[name] <= cpu] for cpu in cpus]
    mine = {max(names, key=first.__getitem__) for names in below if names}
    return [name for name in domains if name in mine]


def _busy(answer: Answer, governors: Sequence[str] | None) -> list[State]:
    """Return the states that were read while the clock was surely that of a busy machine.

    Not the one before the warm-up, where a governor may have lowered it; the same is true at the
    first look, for which the runs wait, and after the last run. governors: where they are not
    known to do that, they count; None: they may.
    """
    warm, *watch, end = _during(answer)
    if governors is None:
        return watch[1:]
    if any(name.strip() in _IDLING_GOVERNORS for name in governors):
        return [warm, *watch[1:]]
    return [warm, *watch, end]


def _clocks(answer: Answer) -> list[str]:
    names = list(_series(_during(answer), "clock_khz"))
    reasons = []
    for name in _measured_domains(answer, names):
        governors = [one[name] for one in _known(_during(answer), "governor") if name in one]
        khz = _series(_busy(answer, governors), "clock_khz").get(name, [])
        reasons += _changed(f"the clock of {name}", [value * 1e3 for value in khz])
    unasked = _busy(answer, None)
    reasons += _changed("the clock of the processor", _known(unasked, "pi_clock_hz"))
    return reasons


def _changed(what: str, clocks_hz: Sequence[float]) -> list[str]:
    """Compare with the first one: it is told apart in which direction the clock went."""
    if not clocks_hz or max(clocks_hz) <= min(clocks_hz) * (1 + CLOCK_CHANGE):
        return []
    first = clocks_hz[0]
    furthest = max(clocks_hz, key=lambda hz: abs(hz - first))
    return [
        f"{what} went from {first / 1e9:.2f} to {furthest / 1e9:.2f} GHz during the measurement"
    ]


def _gpu(answer: Answer) -> list[str]:
    job = answer.get("job") or {}
    words = f"{job.get('runtime')} {job.get('provider')}".lower()
    if "cuda" not in words and "tensorrt" not in words:
        return []  # what an idle GPU does is nothing to a CPU
    states = _busy(answer, None)
    boards = _known(states, "gpu_state")
    mhz = [one["clock_mhz"] for one in boards if one.get("clock_mhz") is not None]
    clocks = [value * 1e6 for value in mhz] or _known(states, "gpu_clock_hz")
    reasons = _changed("the clock of the GPU", clocks)
    bits = [int(one["throttle_reasons"], 16) for one in boards if one.get("throttle_reasons")]
    for bit, what in _GPU_BITS.items():
        times = sum(bool(one & bit) for one in bits)
        if times:
            reasons.append(f"the GPU was held back ({what}) in {times} of {len(bits)} looks")
    return reasons


def wall_s(answer: Answer) -> float:
    """Return about how long the measurement took, in seconds: waiting, settling and timed runs."""
    total_ns = 0.0
    for turn in answer["turns"]:
        samples = turn["samples_ns"]
        total_ns += sum(samples) * (1 + turn.get("settle_runs", 0) / len(samples))
        total_ns += (turn.get("rest_s") or 0.0) * 1e9
    return total_ns / 1e9


def _grown(answer: Answer, key: str) -> float | None:
    """Return by how much a counter of the measuring process grew; its watcher has others."""
    before, after = (_state(answer, moment).get(key) for moment in ("warm", "end"))
    return None if before is None or after is None else after - before


def _interrupted(answer: Answer) -> list[str]:
    reasons = []
    whole_s = wall_s(answer)
    waited_ns, stolen = _grown(answer, "waited_for_cpu_ns"), _grown(answer, "stolen_ticks")
    if waited_ns is not None and waited_ns / 1e9 > WAITED_SHARE * whole_s:
        reasons.append(
            f"other programs held the CPU: the measuring thread waited {waited_ns / 1e9:.2f} s "
            f"for it during a measurement of {whole_s:.2f} s"
        )
    if stolen is not None and stolen / 100 > STOLEN_SHARE * whole_s:
        reasons.append(
            f"the host gave this machine's CPUs to others for {stolen / 100:.2f} s during a "
            f"measurement of {whole_s:.2f} s (stolen time)"
        )
    return reasons


def _never_resting(answer: Answer) -> list[str]:
    turns = answer["turns"]
    restless = sum(turn.get("rest_s", 0.0) is None for turn in turns)
    if not restless:
        return []
    return [
        f"before {restless} of {len(turns)} turns the worker threads of the model before them did "
        "not stop looking for work, and held CPUs that the next model's need"
    ]


def _swapped(answer: Answer) -> list[str]:
    moved = {name: last - first for name, first, last in _risen(answer, "swap_pages")}
    if sum(moved.values()) <= SWAPPED_PAGES:
        return []
    return [
        f"memory was swapped during the measurement: {moved.get('in', 0):.0f} pages in, "
        f"{moved.get('out', 0):.0f} out"
    ]


def _held_back(answer: Answer) -> list[str]:
    risen = {name: last - first for name, first, last in _risen(answer, "cgroup_throttled")}
    if not risen.get("periods"):
        return []
    return [
        f"the CPU quota held the process back in {risen['periods']:.0f} periods, for "
        f"{risen.get('time_us', 0) / 1e6:.2f} s in all"
    ]


def _power_mode(answer: Answer) -> list[str]:
    modes = _known([_state(answer, "start"), *_during(answer)], "power_mode")
    other = next((mode for mode in modes if mode != modes[0]), None)
    if other is None:
        return []
    names = [f"{mode['name']} ({mode['id']})" for mode in (modes[0], other)]
    return [f"the power mode went from {names[0]} to {names[1]}"]


def _drift(answer: Answer, typical: Floats) -> list[str]:
    import numpy as np
    from scipy.stats import spearmanr

    fifth = len(typical) // 5
    if not fifth:
        return []
    first, last = np.median(typical[:fifth]), np.median(typical[-fifth:])
    if max(first, last) <= min(first, last) * (1 + DRIFT_CHANGE):
        return []
    p = float(spearmanr(np.arange(len(typical)), typical).pvalue)
    if p >= DRIFT_P:
        return []
    name = answer["models"][0]["name"]
    return [
        f"the times drifted: '{name}' took {first / 1e6:.4g} ms in the first fifth of the blocks "
        f"and {last / 1e6:.4g} ms in the last ({last / first - 1:+.1%}, p = {p:.1g})"
    ]


def _not_in_turns(answer: Answer) -> list[str]:
    """What trtexec measures is for want of anything better."""
    if answer.get("in_turns", True):
        return []
    version = answer["versions"]["trtexec"]
    flags = " ".join(
        flag
        for flag in answer["models"][0]["setup"]["flags"]
        if not flag.startswith(("--onnx=", "--saveEngine=", "--exportTimes="))
    )
    return [
        f"trtexec {version} measured one model after the other, not in turns, and starts an "
        f"inference before the last has answered ({flags})"
    ]


_RULES: tuple[Rule, ...] = (
    _not_in_turns,
    _throttled,
    _overcurrent,
    _pi,
    _cooling,
    _clocks,
    _gpu,
    _interrupted,
    _never_resting,
    _swapped,
    _held_back,
    _power_mode,
)
