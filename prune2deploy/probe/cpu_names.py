"""Names for what /proc/cpuinfo tells in flags and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Iterable

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


def features_of(family: str, flags: Collection[str]) -> dict[str, bool]:
    """Return which features a processor has, of those that its family may have.

    Args:
        family: X86 or ARM.
        flags: the words after "flags" or "Features" in /proc/cpuinfo.
    """
    have = set(flags)
    return {f.name: not have.isdisjoint(f.flags) for f in FEATURES if f.family == family}


def arm_cores(parts: Iterable[str]) -> str:
    """Return "Cortex-A76 + Cortex-A55" for "CPU part" numbers, each named once."""
    return " + ".join(_ARM_CORES.get(part, f"Arm core {part}") for part in dict.fromkeys(parts))
