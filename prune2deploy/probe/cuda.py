"""The little of CUDA's runtime that an inference needs, through ctypes."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import sys
from pathlib import Path
from typing import Any

from .job import Refusal
from .reading import read

# Newest first. That of CUDA 11 is really called so.
SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_FOLDERS = (
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/*/lib",
    "/usr/local/cuda-*/lib64",
    "/usr/lib/aarch64-linux-gnu",  # Jetson
)
# Packages of NVIDIA: nvidia-cuda-runtime (13) and nvidia-cuda-runtime-cu12.
_PACKAGES = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")

# Numbers in driver_types.h.
_TO_DEVICE, _TO_HOST = 1, 2
_SM_COUNT, _MAJOR, _MINOR = 16, 75, 76
_SPIN, _BLOCK, _SCHEDULE_MASK = 1, 4, 7
_NAME_BYTES = 256  # the first field of cudaDeviceProp, in every version
_PROPERTIES_BYTES = 1 << 14  # the whole struct is about 1 KiB


def candidates() -> list[str]:
    """Return where CUDA's runtime library may be, best first."""
    packaged = [os.path.join(place, part) for place in sys.path for part in _PACKAGES]
    found = list(SONAMES)
    for name in SONAMES:
        found += [path for folder in packaged for path in glob.glob(os.path.join(folder, name))]
        found += [path for folder in _FOLDERS for path in glob.glob(os.path.join(folder, name))]
    return found


def load_cuda() -> Cuda:
    """Return the first CUDA runtime that finds a GPU.

    Raises:
        Refusal: "no_gpu", with what was found instead.
    """
    reasons: dict[str, str] = {}
    for path in candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        cuda = Cuda(library)
        reason = cuda.why_no_gpu()
        if reason is None:
            return cuda
        reasons.setdefault(reason, path)  # often all say the same
    what = "; ".join(f"{path}: {reason}" for reason, path in reasons.items())
    if not what:
        what = f"none of {', '.join(SONAMES)} can be loaded"
    raise Refusal(
        "no_gpu",
        f"no GPU can be used here ({what}). Expected an NVIDIA GPU with its driver and the CUDA "
        "runtime library: check nvidia-smi (on a Jetson: that the user is in the group 'video')",
    )


class Cuda:
    """Calls of one libcudart on GPU 0; each raises Refusal ("cuda") where CUDA reports an error.

    Pointers, streams and events are plain ints.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise Refusal("cuda", f"{name} failed: {self._error(code)} (error {code})")

    def _error(self, code: int) -> str:
        function = self._library.cudaGetErrorString
        function.restype = ctypes.c_char_p
        text = function(code)
        return text.decode() if text else "unknown"

    def _int(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int(0)
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def _handle(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def why_no_gpu(self) -> str | None:
        """Return why no GPU can be used, or None where one can."""
        try:
            count = self._int("cudaGetDeviceCount")
        except Refusal as err:
            return str(err)
        return None if count > 0 else "it finds no GPU"

    def device(self) -> dict[str, Any]:
        """Return what an engine depends on: GPU, compute capability, SM count and driver."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        # 12 has a second form of it, whose struct starts alike; 13 has the first name alone.
        plain = "cudaGetDeviceProperties"
        function = plain if hasattr(self._library, plain) else f"{plain}_v2"
        self._call(function, ctypes.byref(properties), 0)
        name = properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
        major, minor, count = (
            self._int("cudaDeviceGetAttribute", number, 0) for number in (_MAJOR, _MINOR, _SM_COUNT)
        )
        return {
            "gpu": name,
            "compute_capability": f"{major}.{minor}",
            "sm_count": count,
            "driver": driver_text(self._int("cudaDriverGetVersion")),
        }

    def schedule(self, spinning: bool) -> None:
        """Choose how a thread waits for the GPU: in a busy loop, or asleep."""
        self._call("cudaSetDeviceFlags", ctypes.c_uint(_SPIN if spinning else _BLOCK))

    def spinning(self) -> bool:
        """Whether threads wait for the GPU in a busy loop, as CUDA reports it."""
        flags = ctypes.c_uint(0)
        self._call("cudaGetDeviceFlags", ctypes.byref(flags))
        return flags.value & _SCHEDULE_MASK == _SPIN

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        return self._handle("cudaMalloc", ctypes.c_size_t(max(1, size)))

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy_in(self, address: int, array: Any, stream: int) -> None:
        """Start copying a C-contiguous array to the device; it must stay alive until synced."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def copy_out(self, array: Any, address: int, stream: int) -> None:
        """Start copying from the device into a C-contiguous array."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST, stream)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            kind,
            ctypes.c_void_p(stream),
        )

    def stream(self) -> int:
        return self._handle("cudaStreamCreate")

    def synchronize(self, stream: int) -> None:
        """Wait until all work of the stream is done; errors of that work are raised here."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def event(self) -> int:
        return self._handle("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ns(self, first: int, last: int) -> int:
        """Return the time between two recorded and synchronized events."""
        value = ctypes.c_float(0.0)
        self._call(
            "cudaEventElapsedTime",
            ctypes.byref(value),
            ctypes.c_void_p(first),
            ctypes.c_void_p(last),
        )
        return round(value.value * 1e6)

    def end_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def end_event(self, event: int) -> None:
        self._call("cudaEventDestroy", ctypes.c_void_p(event))


def driver_text(cuda_version: int, root: Path = Path("/")) -> str:
    """Return the driver's CUDA version and, where the kernel module tells, its own: "12.2 535.1".

    On a Jetson the driver comes with the system, whose release stands for it.
    """
    text = f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"
    module = re.search(r"\d+\.\d+(\.\d+)?", read(root / "proc/driver/nvidia/version") or "")
    if module:
        return f"{text} {module.group()}"
    release = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release") or "")
    return f"{text} L4T {release.group(1)}.{release.group(2)}" if release else text
