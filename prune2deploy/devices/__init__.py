"""The machines that models run on: devices.yaml, SSH, and what each of them is."""

from __future__ import annotations

from prune2deploy.devices.base import Answer, Device, Job, Report
from prune2deploy.devices.file import (
    Devices,
    add_device,
    device_files,
    file_of,
    load_devices,
    set_key,
    user_file,
)
from prune2deploy.devices.opening import open_device
from prune2deploy.devices.settings import CommonSettings, LocalSettings, SshSettings

__all__ = [
    "Answer",
    "CommonSettings",
    "Device",
    "Devices",
    "Job",
    "LocalSettings",
    "Report",
    "SshSettings",
    "add_device",
    "device_files",
    "file_of",
    "load_devices",
    "open_device",
    "set_key",
    "user_file",
]
