"""Where an int8 file does not compute what it says."""

from __future__ import annotations

from prune2deploy.devices.features import features_of
from prune2deploy.report.metrics import Metrics


def saturating(metrics: Metrics) -> list[str]:
    """One sentence per device on which ONNX Runtime's int8 sums can overflow.

    x86 before VNNI adds pairs of products of uint8 and int8 in 16 bits, which hold one of the
    largest but not two (instruction vpmaddubsw; see Intel's manual, and ONNX Runtime's notes on
    quantization). No other processor that we know of does.
    """
    if not any(one.precision == "int8" for one in metrics.precisions):
        return []
    lines = []
    for measured in metrics.latency:
        setup = measured.get("setup") or {}
        machine = setup.get("machine") or {}
        have = features_of(machine) if machine.get("cpu_flags") else {}
        exact = have.get("VNNI", True) or have["AMX"]
        if not exact and "onnxruntime" in (setup.get("versions") or {}):
            lines.append(
                f"int8 on {measured['device']}: large sums saturate, as its processor has no VNNI "
                "and ONNX Runtime adds pairs of products in 16 bits there. An accuracy found on "
                "another processor does not hold: judge the int8 file on this one."
            )
    return lines
