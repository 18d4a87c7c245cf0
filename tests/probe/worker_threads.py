"""Threads that compute beside the test, as a runtime's workers do."""

from __future__ import annotations

import hashlib
import threading
import time

BLOCK = bytes(1 << 26)  # hashed without the interpreter's lock, far longer than its turns


def start_worker(seconds: float) -> threading.Thread:
    """Have another thread compute for so long."""
    end = time.perf_counter() + seconds

    def work() -> None:
        while time.perf_counter() < end:
            hashlib.sha256(BLOCK)

    thread = threading.Thread(target=work)
    thread.start()
    return thread
