"""Where a training stands, on disk: from there it goes on to the same weights, bit for bit."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prune2deploy.train.state_file import DamagedError, read_state, write_state

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass
class Checkpoint:
    """One file for one training.

    Args:
        path: the file.
        identity: text that changes with everything that the training depends on; the state of
            another training is not used.
        every_s: seconds between two states. One more is kept at the end, so that a training
            that is done is not done again.
    """

    path: Path
    identity: str = ""
    every_s: float = 60.0
    _last: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether the last state is old enough for another."""
        return time.monotonic() - self._last >= self.every_s

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_state(self.path, {"format": FORMAT, "identity": self.identity, "state": state})
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """Return the last state, or None where there is none that can be used; the log says why."""
        try:
            found = read_state(self.path)
            if found["format"] != FORMAT or found["identity"] != self.identity:
                raise DamagedError(f"{self.path.name} is of another training")
            state: dict[str, Any] = found["state"]
        except FileNotFoundError:
            return None
        except (DamagedError, LookupError, TypeError) as err:
            logger.warning("The training starts anew: %s", err)
            return None
        return state
