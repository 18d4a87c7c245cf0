"""The machine: processor and what it computes fast, cores, memory, limits, GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from prune2deploy.probe.machine import machine

_NO_LIMIT_BYTES = 2**60  # version 1 of cgroups writes "no limit" as a number near 2**63

X86 = "x86"
ARM = "arm"


@dataclass(frozen=True)
class Feature:
    """An instruction set, and what it is good for here."""

    name: str
    purpose: str
    family: str
    flags: tuple[str, ...]  # any of these in /proc/cpuinfo


FEATURES = (
    Feature("AVX2", "fp32 and int8 inference", X86, ("avx2",)),
    Feature("AVX-512", "faster fp32 inference and training", X86, ("avx512f",)),
    Feature("VNNI", "int8 inference several times faster", X86, ("avx512_vnni", "avx_vnni")),
    Feature("AVX512_BF16", "bf16 training", X86, ("avx512_bf16",)),
    Feature("AMX", "bf16 training and int8 inference, much faster", X86, ("amx_tile",)),
    Feature("NEON", "fp32 inference", ARM, ("asimd", "neon")),
    Feature("FP16", "fp16 inference", ARM, ("asimdhp", "fphp")),
    Feature("dotprod", "int8 inference several times faster", ARM, ("asimddp",)),
    Feature("i8mm", "int8 inference, faster again", ARM, ("i8mm",)),
    Feature("BF16", "bf16 training and inference", ARM, ("bf16",)),
    Feature("SVE", "fp32 inference and training", ARM, ("sve",)),
)

# "CPU part" of Arm's own cores (implementer 0x41), which carry no name in /proc/cpuinfo.
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


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
    family, flags = (X86 if line[1] == "flags" else ARM), set(line[2].split())
    return {f.name: not flags.isdisjoint(f.flags) for f in FEATURES if f.family == family}


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
    parts = dict.fromkeys(re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, flags=re.MULTILINE))
    return " + ".join(_ARM_CORES.get(part, f"Arm core {part}") for part in parts) or model


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
