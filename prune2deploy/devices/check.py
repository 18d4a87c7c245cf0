"""From what a device says of itself to sentences: what it is, and what it can run.

What would disturb a measurement there is in disturbances.py.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from prune2deploy.devices.disturbances import Finding, disturbances
from prune2deploy.devices.features import family_of, features_of
from prune2deploy.devices.settings import CommonSettings, SshSettings
from prune2deploy.probe import cpu_names

Facts = Mapping[str, Any]

OLDEST_PYTHON = (3, 8)
RUNTIME_NAMES = {
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
    "trtexec": "trtexec",
}
# By family, what is worth a word in one line: it decides how fast int8 and fp32 are.
_TELLING = {
    cpu_names.X86: ("AVX2", "AVX-512", "VNNI", "AMX"),
    cpu_names.ARM: ("dotprod", "i8mm", "SVE"),
}
_IMPLIED = {"AVX-512": "AVX2"}


@dataclass(frozen=True)
class FoundRuntime:
    """One runtime there. `versions` is None when it is missing; `advice` then has why, and how
    to get it."""

    name: str
    versions: str | None
    advice: str | None


@dataclass(frozen=True)
class Check:
    """What `devices check` tells. `obstacles` are why nothing can be measured there."""

    description: str
    details: tuple[tuple[str, str], ...]
    runtimes: tuple[FoundRuntime, ...]
    findings: tuple[Finding, ...]
    obstacles: tuple[str, ...]

    @property
    def can_measure(self) -> bool:
        """Whether a measurement would start; findings do not prevent it."""
        return not self.obstacles


def check_facts(name: str, settings: CommonSettings, facts: Facts) -> Check:
    """Judge what the probe's ask "facts" answered.

    Args:
        name: of the device, for commands.
        settings: what devices.yaml says of it.
        facts: the answer. Every key of "machine" and "state" may be None or absent.
    """
    runtimes = tuple(_runtimes(name, settings, facts))
    return Check(
        description=describe(facts),
        details=tuple(_details(facts)),
        runtimes=runtimes,
        findings=tuple(disturbances(settings, facts)),
        obstacles=tuple(_obstacles(settings, facts, runtimes)),
    )


def describe(facts: Facts) -> str:
    """Return what the device is, in one line."""
    machine, state = facts["machine"], facts["state"]
    kind = machine.get("kind")
    if kind == "jetson":
        parts = _jetson(machine, state)
    elif kind == "x86":
        parts = [f"x86: {machine.get('cpu_model') or 'unknown processor'}", *_features(machine)]
        parts.append(_cpus(machine))
    else:
        cores = _cores(machine)
        parts = [machine.get("board") or (cores if kind == "arm" else None) or _other(machine)]
        parts += [cores] if cores != parts[0] else []
        parts += _features(machine)
    gpu = None if kind == "jetson" else machine.get("gpu")
    memory = machine.get("memory_bytes")
    parts += [gpu and f"GPU {gpu}", memory and f"{gigabytes(memory)} memory", machine.get("os")]
    return ", ".join(part for part in parts if part)


def _jetson(machine: Facts, state: Facts) -> list[str | None]:
    board = (machine.get("board") or "Jetson").removeprefix("NVIDIA ")
    l4t, jetpack, mode = machine.get("l4t"), machine.get("jetpack"), state.get("power_mode")
    if l4t:
        release = f"JetPack {jetpack} (L4T {l4t})" if jetpack else f"L4T {l4t}"
    else:
        release = "L4T unknown"
    clocks = state.get("jetson_clocks")
    return [
        board,
        release,
        f"power mode {mode['name']}" if mode else "power mode unknown",
        clocks and f"clocks {clocks}",
        _cores(machine),
    ]


def _other(machine: Facts) -> str:
    model = machine.get("cpu_model") or machine.get("architecture") or "unknown processor"
    return f"{model}, {_cpus(machine)}"


def _cores(machine: Facts) -> str:
    parts = machine.get("cpu_parts")
    if not parts:
        return _cpus(machine)
    names = cpu_names.arm_cores(parts)
    count = machine.get("cpu_count")
    if not count:
        return names
    # The kernel's list does not say how many there are of each.
    return f"{count} x {names}" if len(parts) == 1 else f"{count} CPUs ({names})"


def _cpus(machine: Facts) -> str:
    count, allowed = machine.get("cpu_count"), machine.get("cpus_allowed")
    if not count:
        count = len(allowed) if allowed else None
    if not count:
        return "number of CPUs unknown"
    usable = f"{len(allowed)} of " if allowed and len(allowed) < count else ""
    return f"{usable}{count} CPU{'' if count == 1 else 's'}"


def _features(machine: Facts) -> list[str]:
    """Return the instruction sets that decide about speed."""
    have = features_of(machine)
    named = [name for name in _TELLING[family_of(machine)] if have[name]]
    return [name for name in named if not any(_IMPLIED.get(more) == name for more in named)]


def _details(facts: Facts) -> list[tuple[str, str]]:
    machine, free = facts["machine"], facts.get("disk_free_bytes")
    system = [machine.get("architecture"), machine.get("kernel")]
    return [
        ("Python", f"{facts.get('python')} at {facts.get('executable')}"),
        ("system", ", kernel ".join(part for part in system if part) or "unknown"),
        ("free disk", "unknown" if free is None else f"{free / 1e9:.1f} GB"),
    ]


def _runtimes(name: str, settings: CommonSettings, facts: Facts) -> list[FoundRuntime]:
    runtimes = []
    for key, found in facts["runtimes"].items():
        versions, advice = found["versions"], None
        if versions is None:
            advice = _how_to_get(name, key, settings, facts["machine"], found)
        said = ", ".join(f"{what} {v}" for what, v in (versions or {}).items() if v is not None)
        runtimes.append(FoundRuntime(key, said if versions is not None else None, advice))
    return runtimes


def _how_to_get(
    name: str, runtime: str, settings: CommonSettings, machine: Facts, found: Facts
) -> str:
    kind, number = machine.get("kind"), found.get("signal")
    if number:
        return (
            f"it crashes when it is imported, by signal {_signal_name(number)}; install another "
            "version of it, or a build for this processor"
        )
    if runtime.startswith(("tensorrt", "trtexec")):
        if kind != "jetson" and not machine.get("gpu"):
            return "needs an NVIDIA GPU, and none was found"
        if runtime == "tensorrt_rtx" and kind != "x86":
            return "exists for x86 with GeForce RTX and RTX PRO GPUs only"
    if kind == "jetson" and runtime == "tensorrt":
        return (
            "comes with JetPack (sudo apt-get install nvidia-jetpack), for the system's Python and "
            "environments made with --system-site-packages, as prune2deploy devices setup "
            f"{name} makes them"
        )
    said = str(found.get("message") or "not found")
    if runtime == settings.runtime and isinstance(settings, SshSettings):
        said = re.sub(r"\. Install it with: .*", "", said)
        return f"{said}. Install it with: prune2deploy devices setup {name}"
    return said


def _obstacles(
    settings: CommonSettings, facts: Facts, runtimes: tuple[FoundRuntime, ...]
) -> list[str]:
    found = []
    python = str(facts.get("python") or "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", python)[:2])
    if numbers and numbers < OLDEST_PYTHON:
        found.append(
            f"Python {python} is too old, 3.8 or newer is needed. Install one beside it and name "
            "it as `python` in devices.yaml."
        )
    wanted = next((one for one in runtimes if one.name == settings.runtime), None)
    if wanted is None or wanted.versions is None:
        why = wanted.advice if wanted else "the probe does not know it"
        allowed = get_args(type(settings).model_fields["runtime"].annotation)
        others = [one.name for one in runtimes if one.versions is not None and one.name in allowed]
        instead = [f" Or set `runtime: {one}` in devices.yaml, as it is there." for one in others]
        found.append(
            f"The runtime {RUNTIME_NAMES.get(settings.runtime, settings.runtime)} is missing: "
            f"{why}.{''.join(instead[:1])}"
        )
    return found


def gigabytes(count: float) -> str:
    """Return memory as boards are sold by it: 8245000 kB is "8 GB"."""
    size = count / 2**30
    return f"{size:.0f} GB" if size >= 1.5 else f"{size:.1f} GB"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
