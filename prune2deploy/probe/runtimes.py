"""The runtimes by name. Small classes of one shape: versions, open, check, run, outputs."""

from __future__ import annotations

from typing import Any

from .job import Refusal
from .onnx_runtime import OnnxRuntime
from .torch_runtime import TorchRuntime

RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "torch": TorchRuntime}


def runtime_of(job: dict[str, Any]) -> Any:
    """Return the class that the job names."""
    if job["runtime"] not in RUNTIMES:
        known = ", ".join(sorted(RUNTIMES))
        raise Refusal("bad_job", f"no runtime named '{job['runtime']}'; known: {known}")
    return RUNTIMES[job["runtime"]]
