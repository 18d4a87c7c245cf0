"""A virtual environment on a device, with numpy and the runtime; only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy import progress
from prune2deploy.devices import opening
from prune2deploy.devices.base import Answer, Device, Job
from prune2deploy.devices.check import Check, check_facts
from prune2deploy.devices.settings import CommonSettings, SshSettings
from prune2deploy.errors import DeviceError

FACTS_LIMIT_S = 300.0
_INSTALL_LIMIT_S = 3600.0
_BASE_PYTHON = "python3"
# What pip knows each runtime as. numpy feeds all of them.
_PACKAGES = {"onnxruntime": "onnxruntime", "torch": "torch", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class SetUp:
    """What was made: its Python, whether the environment is new, and what the device has now."""

    python: str
    created: bool
    packages: tuple[str, ...]
    check: Check


def ask(device: Device, label: str, job: Job, time_limit_s: float) -> Answer:
    """Run a job of the probe and show how far it is."""
    with progress.task(f"{label} on {device.name}", 1.0) as shown:
        told = 0.0

        def report(line: Mapping[str, Any]) -> None:
            nonlocal told
            shown.advance(line["done"] - told, str(line["stage"]))
            told = line["done"]

        answer = device.run_probe(job, time_limit_s=time_limit_s, report=report)
        shown.advance(1.0 - told)
        return answer


def check_device(name: str, known: Mapping[str, Any]) -> Check:
    """Ask a device what it is and has.

    Raises:
        DeviceError: there is no connection, or no Python there that can be asked.
    """
    with opening.open_device(name, known) as device:
        try:
            facts = ask(device, "Reading facts", {"ask": "facts"}, FACTS_LIMIT_S)
        except DeviceError as err:
            # How Python before 3.7 sees the probe: it cannot even read it.
            if "future feature annotations is not defined" not in str(err):
                raise
            raise DeviceError(
                f"Device '{name}': its Python at {getattr(device.settings, 'python', '?')} is too "
                "old, 3.8 or newer is needed. Install one beside it and name it as `python` in "
                "devices.yaml."
            ) from err
        return check_facts(name, device.settings, facts)


def set_up(name: str, known: Mapping[str, Any]) -> SetUp:
    """Make the environment in the device's folder, install into it, and ask what it has then.

    What is there already stays, so it may be run again.

    Raises:
        DeviceError: it is this machine, is not reached, or cannot install; the message says why.
    """
    opening.open_device(name, known)  # says so if there is none; it connects in a with-block only
    settings = known[name]
    if not isinstance(settings, SshSettings):
        raise DeviceError(
            f"Device '{name}' is this machine, and an environment of its own is for devices behind "
            f"SSH. Install what is missing here: {settings.python} -m pip install "
            f"{' '.join(packages_for(settings, None))}"
        )
    folder = f"{settings.folder.rstrip('/')}/venv"
    if settings.python.startswith(f"{folder}/"):
        # It is what is to be made, and may not be there yet.
        known = {**known, name: settings.model_copy(update={"python": _BASE_PYTHON})}
    with opening.open_device(name, known) as device:
        facts = ask(device, "Reading facts", {"ask": "facts"}, FACTS_LIMIT_S)
        kind = facts["machine"].get("kind")
        wanted = packages_for(device.settings, kind)
        job = {
            "ask": "setup",
            "folder": folder,
            "packages": list(wanted),
            "system_site": kind == "jetson",  # where JetPack's own TensorRT is
        }
        made = ask(device, "Installing", job, _INSTALL_LIMIT_S)
    there = settings.model_copy(update={"python": made["python"]})
    check = check_device(name, {**known, name: there})
    return SetUp(made["python"], made["created"], wanted, check)


def packages_for(settings: CommonSettings, kind: str | None) -> tuple[str, ...]:
    """Return what pip has to install. kind: of the machine; a Jetson has TensorRT already."""
    if settings.runtime == "tensorrt":
        return ("numpy",) if kind == "jetson" else ("numpy", "tensorrt")
    return "numpy", _PACKAGES[settings.runtime]
