"""What would disturb a measurement on a device: found, why it matters, what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.devices.settings import CommonSettings, SshSettings

Facts = Mapping[str, Any]

_GOVERNORS = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
_GOVERNORS_BY_CPU = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_NO_TURBO = "/sys/devices/system/cpu/intel_pstate/no_turbo"
_BOOST = "/sys/devices/system/cpu/cpufreq/boost"

_PI_LIMIT_C = 80.0  # where a Raspberry Pi begins to slow down
_LIMIT_C = 90.0  # a careful guess for all others, which do not tell theirs
_MARGIN_C = 5.0
_PI_HELD_BACK = {1: "clock capped", 2: "throttled", 3: "soft temperature limit reached"}
_SINCE_BOOT = 16  # of a bit of "now"
_BUSY_PER_CPU = 0.5
_LITTLE_MEMORY = 0.1
_LITTLE_DISK_BYTES = 1e9
_COOLED_BY_SLOWING = re.compile(r"cpu|processor", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing that disturbs. `commands` are for a shell on the device; `advice` is in words."""

    found: str
    why: str
    advice: str
    commands: tuple[str, ...] = ()


def disturbances(settings: CommonSettings, facts: Facts) -> Iterator[Finding]:
    """Yield what was found, the worst first. What the device does not tell, is not found."""
    machine, state = facts["machine"], facts["state"]
    yield from _pi_supply(state)
    yield from _held_back(state)
    yield from _hot(machine, state)
    yield from _overcurrent(state)
    yield from _power_mode(settings, machine, state)
    yield from _jetson_clocks(state)
    yield from _governor(machine, state)
    yield from _turbo(machine)
    yield from _load(machine, state)
    yield from _memory(machine, state)
    yield from _quota(machine)
    yield from _disk(settings, facts)
    yield from _word_size(facts)


def _pi_supply(state: Facts) -> Iterator[Finding]:
    bits = state.get("pi_throttled") or 0
    when = "now" if bits & 1 else "at some time since it was started"
    if bits & 1 or bits >> _SINCE_BOOT & 1:
        yield Finding(
            f"The supply's voltage is too low {when}.",
            "The firmware then lowers the clock without a word, down to less than half.",
            "Use the board's own supply with a short thick cable, take off what hangs on USB, "
            "start it anew and look again (throttled=0x0 is good):",
            ("vcgencmd get_throttled",),
        )


def _held_back(state: Facts) -> Iterator[Finding]:
    bits = state.get("pi_throttled") or 0
    names = []
    for bit, name in _PI_HELD_BACK.items():
        if bits >> bit & 1:
            names.append(f"{name} now")
        elif bits >> bit + _SINCE_BOOT & 1:
            names.append(f"{name} since it was started")
    if names:
        yield Finding(
            f"The firmware holds the processor back: {', '.join(names)}.",
            "The clock falls while it is measured, so that later runs are slower than first ones.",
            "Give it a heat sink and a fan, and let it cool down. A start anew clears what is only "
            "remembered:",
            ("sudo reboot",),
        )
    slowed = [
        zone
        for zone, value in (state.get("cooling_state") or {}).items()
        if value > 0 and _COOLED_BY_SLOWING.search(zone.partition(" ")[2])
    ]
    if slowed:
        yield Finding(
            f"The kernel slows the processor down against heat now ({', '.join(slowed)}).",
            "Times then show how it is cooled, not how fast the model is.",
            "Let it cool down, and see to its cooling.",
        )


def _hot(machine: Facts, state: Facts) -> Iterator[Finding]:
    limit = _PI_LIMIT_C if machine.get("kind") == "raspberry_pi" else _LIMIT_C
    zones = dict(state.get("temperature_c") or {})
    if state.get("pi_temperature_c") is not None:  # exact, where the kernel's is not
        zones = {"processor": state["pi_temperature_c"]}
    if not zones:
        return
    zone, hottest = max(zones.items(), key=lambda item: item[1])
    if hottest >= limit - _MARGIN_C:
        yield Finding(
            f"It is hot: {hottest:.0f} °C at {zone}; at about {limit:.0f} °C it slows down.",
            "A measurement makes it hotter, and the clock falls on the way.",
            "Let it cool down, and see to its cooling.",
        )


def _overcurrent(state: Facts) -> Iterator[Finding]:
    events = sum((state.get("overcurrent_count") or {}).values())
    if events:
        yield Finding(
            f"The board took too much current {events:.0f} times since it was started.",
            "Each time the clocks are cut for a moment, which shows as single slow runs.",
            "Use a stronger supply (it is often a voltage that is too low), or a smaller power "
            "mode.",
        )


def _power_mode(settings: CommonSettings, machine: Facts, state: Facts) -> Iterator[Finding]:
    mode, wanted = state.get("power_mode"), settings.power_mode
    if mode is None:
        if wanted is not None:
            yield Finding(
                f"devices.yaml asks for power mode {wanted}, and the device does not tell its own.",
                "Measuring in another mode than asked for is an error.",
                "Check that nvpmodel runs there; leave `power_mode` out if it is no Jetson.",
                ("nvpmodel -q",),
            )
        return
    if mode["name"] == wanted or (wanted is None and mode["name"].startswith("MAXN")):
        return
    known = {one["name"]: one["id"] for one in machine.get("power_modes") or ()}
    target = wanted or next((name for name in known if name.startswith("MAXN")), None)
    if wanted is not None:
        found = f"Its power mode is {mode['name']}; devices.yaml asks for {wanted}."
        why = "Measuring in another mode than asked for is an error."
    else:
        found = f"Its power mode is {mode['name']}, which is not its fastest (MAXN)."
        why = "A mode limits clocks and switches CPUs off; figures of two modes do not compare."
    if target in known:
        advice = "Set it (it may ask to start anew), or name the mode you want as `power_mode`:"
        commands: tuple[str, ...] = (f"sudo nvpmodel -m {known[target]}",)
    else:
        advice = "Ids differ from module to module: look the mode's up, then set it:"
        commands = ("nvpmodel -p --verbose", "sudo nvpmodel -m ID")
    yield Finding(found, why, advice, commands)


def _jetson_clocks(state: Facts) -> Iterator[Finding]:
    if state.get("jetson_clocks") == "free":
        yield Finding(
            "The clocks are free (jetson_clocks does not hold them).",
            "They follow the load, so that the same model takes a different time each time.",
            "Hold them at the power mode's highest; until the next start:",
            ("sudo jetson_clocks",),
        )


def _governor(machine: Facts, state: Facts) -> Iterator[Finding]:
    if state.get("jetson_clocks") is not None:
        return  # on a Jetson that is what decides
    governors = state.get("governor") or {}
    slow = {policy: name for policy, name in governors.items() if name != "performance"}
    if not slow:
        return
    available = machine.get("available_governors") or {}
    offered = all("performance" in available.get(policy, ("performance",)) for policy in slow)
    path = _GOVERNORS if any(name.startswith("policy") for name in slow) else _GOVERNORS_BY_CPU
    where = "" if len(slow) == len(governors) else f" on {', '.join(sorted(slow))}"
    yield Finding(
        f"The governor is {' and '.join(sorted(set(slow.values())))}{where}, not performance.",
        "The clock follows the load, so that runs after a pause are slower than others.",
        "Set it; until the next start:"
        if offered
        else "This kernel has no governor 'performance'; measure for longer, and compare only "
        "models that were measured together.",
        (f"echo performance | sudo tee {path}",) if offered else (),
    )


def _turbo(machine: Facts) -> Iterator[Finding]:
    if not machine.get("turbo"):
        return
    intel = "Intel" in (machine.get("cpu_model") or "")
    off = f"echo 1 | sudo tee {_NO_TURBO}" if intel else f"echo 0 | sudo tee {_BOOST}"
    yield Finding(
        "Turbo is on.",
        "How long it holds depends on heat and on what other cores do, so times drift.",
        "Switch it off; until the next start:",
        (off,),
    )


def _load(machine: Facts, state: Facts) -> Iterator[Finding]:
    load, count = state.get("load_average"), machine.get("cpu_count")
    if load and count and load[0] > _BUSY_PER_CPU * count:
        yield Finding(
            f"Other programs are at work: a load of {load[0]:g} in the last minute on {count} "
            f"CPU{'' if count == 1 else 's'}.",
            "They take the processor and its caches away in between.",
            "See which they are, and end them or wait:",
            ("top -b -n 1 | head -n 15",),
        )


def _memory(machine: Facts, state: Facts) -> Iterator[Finding]:
    total, free = machine.get("memory_bytes"), state.get("memory_available_bytes")
    pressure = (state.get("pressure") or {}).get("memory")
    swapped = (state.get("swap_pages") or {}).get("out")
    little = total and free is not None and free < _LITTLE_MEMORY * total
    if not little and not pressure:
        return
    found = []
    if free is not None:
        found.append(f"{free / 1e9:.1f} GB of memory are free")
    if swapped:
        found.append(f"{swapped} pages were swapped out since it was started")
    if pressure:
        found.append(f"programs waited for memory in {pressure:g} % of the last 10 s")
    text = ", ".join(found)
    yield Finding(
        f"Memory is short: {text}.",
        "What is swapped out has to be read from the disk again in the midst of a run.",
        "End what takes it, then empty the swap:",
        ("free -m", "sudo swapoff -a && sudo swapon -a"),
    )


def _quota(machine: Facts) -> Iterator[Finding]:
    cores = (machine.get("cpu_quota") or {}).get("cores")
    if cores is not None:
        yield Finding(
            f"A cgroup allows {cores:g} CPUs' worth of time.",
            "Once it is used up, the kernel stops the process until the next period: single runs "
            "take up to 100 ms longer.",
            "Give whole CPUs instead of a share, with Docker by the options "
            "--cpuset-cpus=0,1 instead of --cpus, or use no more threads than that.",
        )


def _disk(settings: CommonSettings, facts: Facts) -> Iterator[Finding]:
    free = facts.get("disk_free_bytes")
    if free is None or free >= _LITTLE_DISK_BYTES:
        return
    folder = settings.folder if isinstance(settings, SshSettings) else "~"
    yield Finding(
        f"The disk is almost full: {free / 1e6:.0f} MB are free.",
        "Models are sent there, and a measurement ends when one does not fit.",
        "See what takes the room, or name another `folder` in devices.yaml:",
        (f"du -sh {folder}", "df -h"),
    )


def _word_size(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    architecture = machine.get("architecture") or ""
    narrow = re.fullmatch(r"armv[5-7]\w*|armv8l|i\d86", architecture)
    # A 32-bit Raspberry Pi OS has a 64-bit kernel, which says aarch64.
    if narrow or facts.get("python_bits") == 32:
        pi = machine.get("kind") == "raspberry_pi"
        seen = architecture if narrow else f"{architecture} kernel, 32-bit Python"
        yield Finding(
            f"The system is a 32-bit one ({seen}).",
            "There are no packages of ONNX Runtime or PyTorch for it, and 64-bit code is faster.",
            "Install the 64-bit system"
            + (", which Raspberry Pi Imager offers." if pi else ", if the processor can run it."),
        )
