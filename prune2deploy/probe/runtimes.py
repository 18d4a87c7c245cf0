"""The runtimes by name. Small classes of one shape: versions, open, check, run, outputs."""

from __future__ import annotations

from typing import Any

from .job import Refusal
from .onnx_runtime import OnnxRuntime
from .tensorrt_runtime import TensorRT, TensorRTRTX
from .torch_runtime import TorchRuntime

RUNTIMES: dict[str, Any] = {
    "onnxruntime": OnnxRuntime,
    "torch": TorchRuntime,
    "tensorrt": TensorRT,
    "tensorrt_rtx": TensorRTRTX,
}


def runtime_of(job: dict[str, Any]) -> Any:
    """Return the class that the job names."""
    if job["runtime"] not in RUNTIMES:
        known = ", ".join(sorted(RUNTIMES))
        raise Refusal("bad_job", f"no runtime named '{job['runtime']}'; known: {known}")
    return RUNTIMES[job["runtime"]]


def prepared(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the job's models after what must be done to them once, before any is timed."""
    runtime = runtime_of(job)
    if not hasattr(runtime, "prepare"):
        return list(job["models"])
    return [runtime.prepare(model, job) for model in job["models"]]
