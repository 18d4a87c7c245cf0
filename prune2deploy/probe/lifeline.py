"""No probe outlives whoever asked for the measurement."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time

GRACE_S = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def watch_caller() -> None:
    """End this process once standard input ends: the caller, or the connection to it, is gone.

    The thread sleeps in a system call, so that it costs no time while something is measured.
    """
    # Not through sys.stdin: at exit Python would wait for the lock that a reading thread holds.
    copy = os.dup(0)
    threading.Thread(target=_wait, args=(copy,), daemon=True).start()


def _wait(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(130)  # the main thread hangs in a call that does not come back


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
