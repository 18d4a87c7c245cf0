"""Stops a program in the middle of a training, as a kill would."""

from __future__ import annotations

from prune2deploy import progress


class Stopped(Exception):
    pass


class StopAt:
    """Shows nothing, and stops the program when so many steps of the training are done."""

    def __init__(self, steps: int, label: str = "Training") -> None:
        self.left = steps
        self.label = label

    def open(self, label: str, total: float | None) -> StopAt:
        return self if label == self.label else StopAt(10**9)

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        self.left -= int(steps)
        if self.left <= 0:
            raise Stopped

    def close(self, task: progress.Task) -> None:
        pass
