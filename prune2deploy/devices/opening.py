"""From a name to a device."""

from __future__ import annotations

from collections.abc import Mapping

from prune2deploy.devices.base import Device
from prune2deploy.devices.local import LocalDevice
from prune2deploy.devices.settings import LocalSettings, SshSettings
from prune2deploy.devices.ssh import SshDevice
from prune2deploy.errors import DeviceError, nearest_name_hint


def open_device(name: str, known: Mapping[str, LocalSettings | SshSettings]) -> Device:
    """Return the device of this name, for a with-block.

    known: from `load_devices`.

    Raises:
        DeviceError: there is none.
    """
    if name not in known:
        raise DeviceError(
            f"No device is named '{name}'. {nearest_name_hint(name, known)} Add it with: "
            f"prune2deploy devices add {name} --host HOST"
        )
    settings = known[name]
    if isinstance(settings, SshSettings):
        return SshDevice(name, settings)
    return LocalDevice(name, settings)
