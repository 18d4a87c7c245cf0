"""`round_to: auto` for budgets that are no times: what the devices' tables of layer times know."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prune2deploy.devices import Devices, open_device
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions
from prune2deploy.latency.staircase.measure import open_table
from prune2deploy.latency.staircase.table import tables_folder

log = logging.getLogger(__name__)

ROUND_TO = 8
"""What suits most CPUs."""


def rounding_for(
    names: Sequence[str], devices: Devices, options: ProfileOptions
) -> tuple[int, str]:
    """Return what widths should be multiples of on some devices, and where that is from.

    A device's steps are known where there is a table for its runtime, version and threads, as a
    budget of time makes it. Nothing is measured; where there are no tables, nobody is asked.
    """
    known: dict[str, int] = {}
    if any(tables_folder().glob("*.json")):
        for name in names:
            step = _known_step(name, devices, options)
            if step is not None:
                known[name] = step
    found = "; ".join(f"{step} are the steps of {name}" for name, step in known.items())
    unknown = ", ".join(name for name in names if name not in known)
    if not unknown and known:
        step = max(known.values())
        return step, f"Widths are multiples of {step}: {found}, by its table of layer times."
    step = max([ROUND_TO, *known.values()])
    usual = f"{ROUND_TO} suits most CPUs, as there is no table of layer times for {unknown}"
    told = "; ".join(part for part in (found, usual) if part)
    return step, f"Widths are multiples of {step}: {told}."


def _known_step(name: str, devices: Devices, options: ProfileOptions) -> int | None:
    try:
        with open_device(name, devices) as device:
            if device.settings.runtime != "onnxruntime":
                return None
            return open_table(device, options).step
    except DeviceError as err:
        # Whether it can be measured on is found when it is; widths can be chosen without.
        log.info("The steps of %s are not known: %s", name, err)
        return None
