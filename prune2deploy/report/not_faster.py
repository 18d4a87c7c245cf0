"""Why a lower precision is not faster than fp32 where it was measured, as far as is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune2deploy.report.metrics import Metrics, PrecisionFigures

_INT8_MULTIPLIES = {
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "int8 matrix products",
}
_SHOWN = 3


def not_faster(metrics: Metrics) -> list[str]:
    """One sentence per device and precision whose pruned file is not faster than that in fp32."""
    lines = []
    for measured in metrics.latency:
        faster = {one["other"]: one for one in measured["speedups"]}
        whole = faster.get("pruned")
        for one in metrics.precisions:
            found = faster.get(f"pruned {one.precision}")
            if whole is None or found is None or found["low"] > whole["high"]:
                continue
            verb = "is slower than" if found["high"] < whole["low"] else "is not faster than"
            text = (
                f"{one.precision} {verb} fp32 on {measured['device']}: {found['ratio']:.2f} times "
                f"the original's speed, where fp32 has {whole['ratio']:.2f}. "
            )
            lines.append(text + " ".join(_reasons(one, measured)))
    return lines


def _reasons(one: PrecisionFigures, measured: Mapping[str, Any]) -> list[str]:
    """What can be told from the file and the device."""
    found = []
    if measured["tainted"]:
        found.append("The measurement is tainted.")
    floating = one.layers.get("fp32", 0)
    if floating:
        total = sum(one.layers.values())
        named = ", ".join(list(one.kept)[:_SHOWN]) + (", …" if len(one.kept) > _SHOWN else "")
        found.append(
            f"{floating} of its {total} layers compute in fp32{f' ({named})' if named else ''}, "
            "and the numbers go from one precision to the other around each."
        )
    setup = measured.get("setup") or {}
    gpu = any(name.startswith("tensorrt") for name in setup.get("versions") or {})
    if not gpu:
        found += _of_the_cpu(one.precision, (setup.get("machine") or {}).get("cpu_flags"))
    if not found:
        found.append(
            "Nothing in the file or the device tells why; 'prune2deploy profile --layers' shows "
            "where the time goes: operators without an int8 kernel go to fp32 and back."
        )
    return found


def _of_the_cpu(precision: str, flags: list[str] | None) -> list[str]:
    if precision == "fp16":
        return [
            "ONNX Runtime computes most operators in fp32 on a CPU, with casts around them: fp16 "
            "saves room there, not time."
        ]
    if flags is None:
        return []
    have = sorted({name for flag, name in _INT8_MULTIPLIES.items() if flag in flags})
    if have:
        return []
    return [
        "The processor has no instructions that multiply int8 numbers (VNNI or AMX on x86, the "
        "dot product on Arm)."
    ]
