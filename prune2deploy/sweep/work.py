"""What one task of a sweep does, in whatever process it is."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from prune2deploy import progress
from prune2deploy.errors import Prune2DeployError
from prune2deploy.pipeline import RunOptions, run_until
from prune2deploy.pipeline.depends import code_of
from prune2deploy.pipeline.runs import state_of
from prune2deploy.recipe import parse_recipe
from prune2deploy.sweep.board import StatusWriter

MARK = ".sweep"
_LOCK_WAIT_S = 60.0


@dataclass(frozen=True)
class Order:
    """A part of one combination, to be done by a worker.

    recipe: its text with every setting. until: the last stage. status: file to tell the progress
    in. attempt: tells this worker from those before. mark: what the sweep's own file holds.
    code: what `own_code` says where the sweep was started. again: whether a worker died on it.
    """

    recipe: str
    folder: Path
    until: str
    status: Path
    attempt: str
    mark: str
    code: str
    threads: int
    again: bool
    checkpoint_s: float


@dataclass(frozen=True)
class Outcome:
    """How a part ended. error: None: well. traceback: of an error that is not the user's."""

    error: str | None = None
    traceback: str | None = None


def own_code() -> str:
    """Hash of the whole package's sources."""
    return code_of(("",))


def attempt(work: Callable[[], object]) -> Outcome:
    """Do some work; an error of the user or of ours becomes an outcome."""
    try:
        work()
    except Prune2DeployError as err:
        return Outcome(str(err))
    except Exception as err:
        return Outcome(f"{type(err).__name__}: {err}", traceback.format_exc())
    return Outcome()


def carry_out(order: Order, host: str) -> Outcome:
    """Do what an order says."""
    return attempt(lambda: _carry_out(order, host))


def _carry_out(order: Order, host: str) -> None:
    _check_place(order, host)
    writer = StatusWriter(order.status, order.attempt, host)
    if order.again:
        # Processes that read data outlive the one that died by some seconds, and hold its lock.
        _wait_for_lock(order.folder)
    torch.set_num_threads(order.threads)
    options = RunOptions(checkpoint_s=order.checkpoint_s, began=writer.began)
    with progress.use(writer):
        recipe = parse_recipe(order.recipe, order.folder / "recipe.yaml")
        run_until(recipe, order.until, order.folder, options)


def _check_place(order: Order, host: str) -> None:
    """A worker on another machine sees the same folder and has the same code."""
    try:
        mark = (order.folder.parent / MARK).read_text(encoding="utf-8")
    except OSError:
        mark = ""
    if mark != order.mark:
        raise Prune2DeployError(
            f"The machine {host} does not see the folder {order.folder.parent}. The machines of a "
            "cluster need a file system that they share, at the same path: name a folder on it "
            "with --output."
        )
    if own_code() != order.code:
        raise Prune2DeployError(
            f"The machine {host} has another prune2deploy than the one where the sweep was "
            "started. Install the same one on all machines of the cluster."
        )


def _wait_for_lock(folder: Path) -> None:
    end = time.monotonic() + _LOCK_WAIT_S
    while folder.exists() and state_of(folder) == "at work" and time.monotonic() < end:
        time.sleep(0.2)
