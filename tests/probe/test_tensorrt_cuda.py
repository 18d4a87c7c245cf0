"""The CUDA layer over a library of our own."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune2deploy.probe import cuda as cuda_module
from prune2deploy.probe.cuda import Cuda, candidates, driver_text, load_cuda
from prune2deploy.probe.job import Refusal

ATTRIBUTES = {16: 16, 75: 8, 76: 7}


def number(value: Any) -> int:
    """What a C function gets for a Python argument."""
    return int(getattr(value, "value", value) or 0)


class Function:
    def __init__(self, call: Any) -> None:
        self.call, self.restype = call, None

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class Library:
    """Functions of libcudart with their C signatures, over memory of this process."""

    def __init__(self, devices: int = 1, error: int = 0) -> None:
        self.devices, self.error = devices, error
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []
        self.flags = 0
        self.cudaGetErrorString = Function(lambda code: b"no driver" if code == 35 else b"bad")

    def _put(self, reference: Any, value: Any) -> int:
        reference._obj.value = value
        return self.error

    def cudaGetDeviceCount(self, count: Any) -> int:
        return self._put(count, self.devices)

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:
        content = b"Orin\0" + b"\xff" * 1000
        ctypes.memmove(properties._obj, content, len(content))
        return 0

    def cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        return self._put(value, ATTRIBUTES[attribute])

    def cudaDriverGetVersion(self, value: Any) -> int:
        return self._put(value, 12060)

    def cudaSetDeviceFlags(self, flags: Any) -> int:
        self.flags = number(flags) | 8  # another flag that the driver sets by itself
        return 0

    def cudaGetDeviceFlags(self, flags: Any) -> int:
        return self._put(flags, self.flags)

    def cudaMalloc(self, address: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(number(size))
        self.blocks[ctypes.addressof(block)] = block
        return self._put(address, ctypes.addressof(block))

    def cudaFree(self, address: Any) -> int:
        return 0 if self.blocks.pop(number(address), None) else 1

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: int, stream: Any) -> int:
        device = number(to) if kind == 1 else number(source)
        if device not in self.blocks or ctypes.sizeof(self.blocks[device]) < number(size):
            return 1
        ctypes.memmove(to, source, number(size))
        return 0

    def cudaStreamCreate(self, stream: Any) -> int:
        return self._put(stream, 0x7F0000000010)  # wider than a C int

    def cudaStreamSynchronize(self, stream: Any) -> int:
        assert number(stream) == 0x7F0000000010
        return 0

    def cudaEventCreate(self, event: Any) -> int:
        return self._put(event, 0x7F0000000020)

    def cudaEventRecord(self, event: Any, stream: Any) -> int:
        return 0

    def cudaEventElapsedTime(self, ms: Any, first: Any, last: Any) -> int:
        return self._put(ms, 1.5)

    def cudaEventDestroy(self, event: Any) -> int:
        self.calls.append("event")
        return 0

    def cudaStreamDestroy(self, stream: Any) -> int:
        self.calls.append("stream")
        return 0


def test_the_gpu() -> None:
    facts = Cuda(Library()).device()
    assert facts["gpu"] == "Orin"
    assert (facts["compute_capability"], facts["sm_count"]) == ("8.7", 16)
    assert facts["driver"].startswith("12.6")


def test_properties_under_their_second_name() -> None:
    class Newer:
        def __init__(self, library: Library) -> None:
            self._library = library

        def __getattr__(self, name: str) -> Any:
            if name == "cudaGetDeviceProperties":
                raise AttributeError(name)
            return getattr(self._library, name.replace("_v2", ""))

    assert Cuda(Newer(Library())).device()["gpu"] == "Orin"


def test_data_goes_there_and_back() -> None:
    library = Library()
    cuda = Cuda(library)
    stream = cuda.stream()
    sent = np.arange(12, dtype=np.float32).reshape(3, 4)
    address = cuda.malloc(sent.nbytes)
    cuda.copy_in(address, sent, stream)
    back = np.zeros_like(sent)
    cuda.copy_out(back, address, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(back, sent)
    with pytest.raises(Refusal, match=r"cudaMemcpyAsync failed: bad \(error 1\)"):
        cuda.copy_in(address, np.zeros(13, np.float32), stream)
    cuda.free(address)
    with pytest.raises(Refusal, match="cudaFree failed"):
        cuda.free(address)
    assert cuda.malloc(0)  # a tensor of no elements has an address as well
    cuda.end_stream(stream)
    assert library.calls == ["stream"]


def test_times_are_in_ns() -> None:
    cuda = Cuda(Library())
    first, last = cuda.event(), cuda.event()
    cuda.record(first, cuda.stream())
    cuda.record(last, cuda.stream())
    assert cuda.elapsed_ns(first, last) == 1_500_000
    cuda.end_event(first)


def test_how_a_thread_waits() -> None:
    cuda = Cuda(Library())
    assert not cuda.spinning()
    cuda.schedule(True)
    assert cuda.spinning()
    cuda.schedule(False)
    assert not cuda.spinning()


def loaded(monkeypatch: pytest.MonkeyPatch, libraries: dict[str, Library]) -> Cuda:
    def load(path: str) -> Library:
        if path not in libraries:
            raise OSError(path)
        return libraries[path]

    monkeypatch.setattr(cuda_module.ctypes, "CDLL", load)
    return load_cuda()


def test_the_first_library_that_the_driver_can_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    too_new, right = Library(error=35), Library()
    found = loaded(monkeypatch, {"libcudart.so.13": too_new, "libcudart.so.12": right})
    assert found._library is right


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for libraries, text in [
        ({}, "none of libcudart.so.13"),
        ({"libcudart.so.13": Library(error=35)}, r"so\.13: .*no driver \(error 35\)"),
        ({"libcudart.so.12": Library(devices=0)}, r"so\.12: it finds no GPU"),
    ]:
        with pytest.raises(Refusal, match=text) as caught:
            loaded(monkeypatch, libraries)
        assert caught.value.facts["kind"] == "no_gpu"
        assert "nvidia-smi" in str(caught.value)


def test_packages_of_nvidia_are_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").write_bytes(b"")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = candidates()
    assert str(folder / "libcudart.so.12") in found
    assert found[0] == "libcudart.so.13"


def test_the_driver(tmp_path: Path) -> None:
    assert driver_text(12060, tmp_path) == "12.6"
    (tmp_path / "etc").mkdir()
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
    (tmp_path / "etc/nv_tegra_release").write_text(release)
    assert driver_text(12060, tmp_path) == "12.6 L4T 36.4.3"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC 13.2.0"
    (tmp_path / "proc/driver/nvidia/version").write_text(line)
    assert driver_text(12040, tmp_path) == "12.4 550.54.15"
