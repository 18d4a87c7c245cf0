"""The machine: processor and what it computes fast, cores, memory, limits, GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from prune2deploy.probe import cpu_names
from prune2deploy.probe.cpu_names import ARM, X86
from prune2deploy.probe.machine import machine

_NO_LIMIT_BYTES = 2**60  # version 1 of cgroups writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Machine:
    """What was found; None is what could not be read."""

    cpu: str | None
    board: str | None
    architecture: str
    kernel: str
    features: dict[str, bool]  # by Feature.name, those of this family of processors
    cores: int | None  # that this process may run on
    core_quota: float | None  # cores' worth of time that a cgroup allows; None: no limit
    memory_bytes: int | None
    memory_limit_bytes: int | None  # of a cgroup; None: no limit
    disk_free_bytes: int  # where the current folder is
    gpus: tuple[str, ...]  # that the NVIDIA driver or the board names
    is_jetson: bool


def examine_machine(root: Path = Path("/")) -> Machine:
    """Read the machine's state.

    Args:
        root: where proc, sys and etc are.
    """
    facts = machine(root)  # the same reading that every measurement records
    cpuinfo = _text(root / "proc/cpuinfo")
    allowed = facts["cpus_allowed"]
    quota = facts["cpu_quota"]
    is_jetson = (root / "etc/nv_tegra_release").exists()
    return Machine(
        cpu=_cpu_name(facts["cpu_model"], cpuinfo),
        board=facts["board"],
        architecture=facts["architecture"],
        kernel=facts["kernel"],
        features=features_of(cpuinfo),
        cores=len(allowed) if allowed else os.cpu_count(),
        core_quota=quota["cores"] if quota else None,
        memory_bytes=facts["memory_bytes"],
        memory_limit_bytes=memory_limit(root),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=("the Jetson's own",) if is_jetson else _nvidia_gpus(),
        is_jetson=is_jetson,
    )


def features_of(cpuinfo: str) -> dict[str, bool]:
    """Return which features the processor has, of those that its family may have.

    Args:
        cpuinfo: text of /proc/cpuinfo; empty where there is none.
    """
    # x86 writes "flags", Arm "Features"; all cores of a machine are taken to be alike.
    line = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    if line is None:
        return {}
    return cpu_names.features_of(X86 if line[1] == "flags" else ARM, line[2].split())


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of the cgroups this process is in, in bytes."""
    groups = root / "sys/fs/cgroup"
    files: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            folder, file = groups, "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = Path(own.lstrip("/")).parts
        # A limit of any group above counts too. Inside a container the path may not exist.
        files += [folder.joinpath(*parts[:n], file) for n in range(len(parts) + 1)]
    limits = [int(text) for file in files if (text := _text(file).strip()).isdecimal()]
    return min((limit for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def _cpu_name(model: str | None, cpuinfo: str) -> str | None:
    if "CPU implementer" not in cpuinfo:
        return model
    # On Arm the probe's name is the board's, if it has any; the cores say what they are.
    parts = re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, flags=re.MULTILINE)
    return cpu_names.arm_cores(parts) or model


def _nvidia_gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(done.stdout.split("\n")[:-1]) if done.returncode == 0 else ()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
