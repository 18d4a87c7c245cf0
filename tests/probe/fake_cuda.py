"""A stand-in for the CUDA layer."""

from __future__ import annotations

import ctypes
from typing import Any

from prune2deploy.probe.job import Refusal


class FakeCuda:
    """A GPU whose memory is this process's own."""

    def __init__(self, **facts: Any) -> None:
        known = {"gpu": "Orin", "compute_capability": "8.7", "sm_count": 16, "driver": "12.6"}
        self._facts = {**known, **facts}
        self._memory: dict[int, Any] = {}
        self._spinning = False
        self._streams: set[int] = set()
        self._synced = True
        self._recorded: dict[int, int] = {}

    def device(self) -> dict[str, Any]:
        return dict(self._facts)

    def schedule(self, spinning: bool) -> None:
        self._spinning = spinning

    def spinning(self) -> bool:
        return self._spinning

    def malloc(self, size: int) -> int:
        block = ctypes.create_string_buffer(max(1, size))
        address = ctypes.addressof(block)
        self._memory[address] = block
        return address

    def free(self, address: int) -> None:
        if address not in self._memory:
            raise Refusal("cuda", "freed twice")
        del self._memory[address]

    def copy_in(self, address: int, array: Any, stream: int) -> None:
        assert stream in self._streams
        assert ctypes.sizeof(self._memory[address]) >= array.nbytes
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, array: Any, address: int, stream: int) -> None:
        assert stream in self._streams
        assert ctypes.sizeof(self._memory[address]) >= array.nbytes
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def stream(self) -> int:
        self._streams.add(7)
        return 7

    def synchronize(self, stream: int) -> None:
        assert stream in self._streams

    def event(self) -> int:
        number = len(self._recorded) + 1
        self._recorded[number] = -1
        return number

    def record(self, event: int, stream: int) -> None:
        self._recorded[event] = max(self._recorded.values()) + 1

    def elapsed_ns(self, first: int, last: int) -> int:
        return self._recorded[last] - self._recorded[first]

    def end_event(self, event: int) -> None:
        del self._recorded[event]

    def end_stream(self, stream: int) -> None:
        self._streams.remove(stream)
