"""How to measure: what a user may set, and what the device's entry decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prune2deploy.devices import CommonSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import statistics

NVIDIA = ("tensorrt", "tensorrt_rtx")
BUILT = (*NVIDIA, "trtexec")
"""Runtimes that have to be told the precision of a file."""


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure. The defaults suit a single image on one core.

    `min_samples` is at least what a 90th percentile needs; 662 make a 99th possible. What is None,
    and `pin` "device", is as the device's entry in devices.yaml has it. `engine`: options of the
    build, of the probe's BUILD_OPTIONS, for devices with TensorRT.

    Raises:
        DeviceError: a value is out of its range.
    """

    threads: int | None = None
    pin: Literal["auto", "device"] | tuple[int, ...] | None = "device"
    spinning: bool | None = None
    batch: int | None = None
    seed: int = 0
    min_time_s: float = 5.0
    min_samples: int = 100
    min_blocks: int = 20
    turn_s: float = 0.05
    warmup_min_s: float = 0.5
    warmup_max_s: float = 10.0
    time_limit_s: float = 900.0
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        floors = {
            "threads": 1,
            "min_samples": statistics.samples_needed(0.90),
            "min_blocks": statistics.MIN_BLOCKS,
        }
        for name, floor in floors.items():
            value = getattr(self, name)
            if value is not None and value < floor:
                raise DeviceError(f"{name} is {getattr(self, name)}; give at least {floor}.")
        if self.batch is not None and self.batch < 1:
            raise DeviceError(f"batch is {self.batch}; give at least 1, or None for the model's.")
        for name in ("min_time_s", "turn_s", "warmup_min_s", "warmup_max_s", "time_limit_s"):
            if not getattr(self, name) > 0:
                raise DeviceError(f"{name} is {getattr(self, name)}; give more than 0 seconds.")


def options_on(settings: CommonSettings, options: ProfileOptions) -> ProfileOptions:
    """Fill in what the device decides."""
    threads = options.threads or settings.threads
    pin = options.pin
    if pin == "device":
        # CPUs that were named for another number of threads say nothing about this one.
        cores = settings.cores
        pin = cores if cores is not None and len(cores) == threads else "auto"
    spinning = settings.spinning if options.spinning is None else options.spinning
    return replace(options, threads=threads, pin=pin, spinning=spinning)
