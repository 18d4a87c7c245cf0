"""What is known of the runs in a folder, and clearing away those that are not wanted."""

from __future__ import annotations

import datetime
import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from prune2deploy.errors import RecipeError
from prune2deploy.pipeline.depends import KINDS
from prune2deploy.pipeline.folder import LOCK, METRICS, RECIPE, STAGES, RunFolder
from prune2deploy.pipeline.stages import StageRecord, read_record
from prune2deploy.report import Metrics

State = Literal["finished", "stopped", "at work"]


@dataclass(frozen=True)
class RunFacts:
    """One run.

    records: of its finished stages, in order. changed: of its folder's newest stage, or of the
    folder. bytes: of all its files. metrics: None: it has none that can be read.
    """

    folder: Path
    state: State
    records: tuple[StageRecord, ...]
    changed: datetime.datetime
    bytes: int
    metrics: Metrics | None


def find_runs(parent: Path) -> list[RunFacts]:
    """Return the runs right below a folder, the newest first.

    Raises:
        RecipeError: there is no such folder.
    """
    if not parent.is_dir():
        raise RecipeError(
            f"There is no folder {parent}. Runs are in 'runs' below the folder that they were "
            "started in; name another with its path."
        )
    found = [facts_of(path) for path in parent.iterdir() if _is_run(path)]
    return sorted(found, key=lambda run: run.changed, reverse=True)


def _is_run(path: Path) -> bool:
    return path.is_dir() and (
        (path / STAGES).is_dir() or ((path / RECIPE).is_file() and (path / METRICS).is_file())
    )


def facts_of(folder: Path) -> RunFacts:
    """Look at one run.

    Raises:
        RecipeError: there is none in the folder.
    """
    if not _is_run(folder):
        raise RecipeError(
            f"{folder} holds no run. 'prune2deploy runs list' shows those that there are."
        )
    records = [record for name in KINDS if (record := read_record(folder, name)[0]) is not None]
    try:
        metrics = Metrics.model_validate_json((folder / METRICS).read_bytes())
    except (OSError, ValidationError):
        metrics = None
    stamps = [datetime.datetime.fromisoformat(record.finished) for record in records]
    touched = datetime.datetime.fromtimestamp(folder.stat().st_mtime).astimezone()
    return RunFacts(
        folder,
        state_of(folder),
        tuple(records),
        max(stamps, default=touched),
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        metrics,
    )


def state_of(path: Path) -> State:
    """Whether the run in a folder came to its end, or somebody is at work on it."""
    folder = RunFolder(path)
    try:
        with folder.file(LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return "at work"
    return "finished" if folder.finished else "stopped"


def to_clean(runs: Sequence[RunFacts], keep: int | None) -> list[RunFacts]:
    """Choose what `clean` removes: runs that were stopped, or all but the newest that finished.

    keep: how many finished runs of each name stay; None: all of them.
    """
    chosen = [run for run in runs if run.state == "stopped"]
    if keep is not None:
        counted: dict[str, int] = {}
        for run in sorted(runs, key=lambda run: run.changed, reverse=True):
            name = _name(run)
            if run.state == "finished":
                counted[name] = counted.get(name, 0) + 1
                if counted[name] > keep:
                    chosen.append(run)
    return chosen


def _name(run: RunFacts) -> str:
    return run.folder.name if run.metrics is None else run.metrics.name


def remove(run: RunFacts) -> None:
    """Delete a run's folder.

    Raises:
        RecipeError: somebody is at work in it.
    """
    with RunFolder(run.folder).alone():
        # First what makes it a run: if the rest fails, nobody takes it for one.
        trash = run.folder.with_name(f".{run.folder.name}.removed-{os.getpid()}")
        run.folder.rename(trash)
    shutil.rmtree(trash)
