"""Who is told of every epoch, whichever part of a run trains.

As with progress, `fit` knows nothing of those who listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prune2deploy.train.history import EpochRecord

EpochListener = Callable[[str, EpochRecord], None]
"""Gets the label of the training, such as 'Fine-tuning', and what the epoch gave."""


def _nobody(label: str, record: EpochRecord) -> None:
    pass


_listener: ContextVar[EpochListener] = ContextVar("epoch_listener", default=_nobody)


def tell_epoch(label: str, record: EpochRecord) -> None:
    """Tell whoever listens that an epoch is over."""
    _listener.get()(label, record)


@contextmanager
def epochs_told_to(listener: EpochListener) -> Iterator[None]:
    """Tell this listener of all epochs inside the with-block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
