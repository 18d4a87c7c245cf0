"""Keep the chatter of other people's exporters from the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop this thread's prints, and all warnings and log lines; exceptions still rise.

    Other threads still write, so that progress bars stay alive.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    out, err = cast(TextIO, _Muted(sys.stdout)), cast(TextIO, _Muted(sys.stderr))
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


class _Muted:
    """A stream that forgets what the thread that made it writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
