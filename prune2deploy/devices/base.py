"""What a device is: a machine that takes files and runs the probe.

To add a kind: write a class of this shape in a file of its own, its settings in settings.py, and a
line in `KINDS` of opening.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

from prune2deploy.devices.settings import CommonSettings

Job = Mapping[str, Any]
Answer = dict[str, Any]
Report = Callable[[Mapping[str, Any]], None]


class Device(Protocol):
    """A machine that can be measured; what it holds is released when the with-block ends."""

    name: str

    @property
    def settings(self) -> CommonSettings: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def place(self, path: Path) -> str:
        """Make a file available on the device; return its path there."""

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file of the device to here, whole or not at all."""

    def run_probe(self, job: Job, *, time_limit_s: float, report: Report) -> Answer:
        """Run one job; `report` gets each progress line. Raises DeviceError unless it is "ok"."""
