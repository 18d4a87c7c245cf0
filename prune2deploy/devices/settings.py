"""What devices.yaml says of a device, with its defaults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class CommonSettings(BaseModel):
    """What every kind of device has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Literal["onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "trtexec"] = Field(
        default="onnxruntime",
        description="What runs the models there; trtexec is for boards without TensorRT's Python.",
    )
    threads: int = Field(default=1, ge=1, description="Threads of the runtime.")
    cores: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="CPUs to run on, one per thread; left out: chosen by the device's topology.",
    )
    spinning: bool = Field(
        default=True, description="Whether waiting threads keep their CPUs busy, as by default."
    )
    power_mode: str | None = Field(
        default=None,
        description="Name of the nvpmodel mode that a Jetson must be in; another one is an error.",
    )
    cooldown_s: float = Field(
        default=30.0, ge=0, description="Pause before a measurement is tried again."
    )


class LocalSettings(CommonSettings):
    """This machine."""

    kind: Literal["local"] = Field(default="local", description="This machine.")
    python: str = Field(
        default=sys.executable, description="Python that has the runtime; left out: this one."
    )


class SshSettings(CommonSettings):
    """A device that is reached over SSH. What is left out, ~/.ssh/config and the agent decide."""

    kind: Literal["ssh"] = Field(description="Reached over SSH.")
    host: str = Field(min_length=1, description="Name or address, or a Host of ~/.ssh/config.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Port of its sshd.")
    user: str | None = Field(default=None, min_length=1, description="User to log in as.")
    key: Path | None = Field(default=None, description="Private key file; the agent's otherwise.")
    known_hosts: Path | None = Field(
        default=None, description="File of host keys to trust; ~/.ssh/known_hosts otherwise."
    )
    python: str = Field(
        default="python3", min_length=1, description="Python 3.8 or newer there, with the runtime."
    )
    folder: str = Field(
        default="~/.cache/prune2deploy",
        min_length=1,
        description="Where models are kept there between measurements.",
    )
    connect_timeout_s: float = Field(default=15.0, gt=0, description="Time to get a connection.")


Settings = Annotated[LocalSettings | SshSettings, Field(discriminator="kind")]
