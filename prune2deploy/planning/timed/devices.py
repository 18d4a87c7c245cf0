"""Devices that plans for a time can be measured on."""

from __future__ import annotations

from collections.abc import Sequence

from prune2deploy.devices import Devices, load_devices
from prune2deploy.errors import DeviceError, nearest_name_hint


def devices_for_times(key: str, names: Sequence[str], known: Devices | None = None) -> Devices:
    """Return this machine's devices, among them those, which can tell how long layers take.

    Raises:
        DeviceError: one is not known, or cannot. key: what named it, for the message.
    """
    known = load_devices() if known is None else known
    refuse_unknown(key, names, known)
    for name in names:
        runtime = known[name].runtime
        if runtime != "onnxruntime":
            raise DeviceError(
                f"{key} names '{name}', whose runtime is {runtime}. Plans for a time need the "
                "times of single layers, which onnxruntime tells. Name a device with it, or "
                "ask for macs or params and look at the latency."
            )
    return known


def refuse_unknown(key: str, names: Sequence[str], known: Devices) -> None:
    """Raise DeviceError if a device is not known; key is what names it."""
    unknown = [name for name in names if name not in known]
    if unknown:
        one = unknown[0]
        named = ", ".join(f"'{name}'" for name in unknown)
        raise DeviceError(
            f"{key} names {named}, and no such device is known here. "
            f"{nearest_name_hint(one, known)} Add it with: prune2deploy devices add {one} "
            f"--host HOST, or measure elsewhere: --set {key}=[local]"
        )
