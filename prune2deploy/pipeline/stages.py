"""What a stage left: a record with everything it depended on and the hashes of its files.

A stage is not run again while its record agrees with what it would depend on now and its files
are as they were written. Records of other runs beside this one count too: their files are copied.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from prune2deploy.pipeline.folder import STAGES, RunFolder, sha256_of

log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
NEVER = "it was not finished before"
_SHOWN = 3
"""Differences that are named."""


class StageRecord(BaseModel):
    """A finished stage.

    depends: what it was made from, by name, in words or as hashes. files: sha256 by path in the
    folder. result: figures, for later stages and the report. seconds: that it took.
    taken_from: the run that it was copied from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    stage: str
    depends: dict[str, str]
    files: dict[str, str]
    result: dict[str, Any]
    seconds: float
    finished: str
    taken_from: str | None = None

    @field_validator("files")
    @classmethod
    def _files_are_in_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} is outside the run's folder")
        return files

    @property
    def content(self) -> str:
        """Changes when a file of the stage does."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def key_of(depends: Mapping[str, str]) -> str:
    """One text for everything that a stage depends on."""
    return hashlib.sha256(json.dumps(dict(depends), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """A record that can be used, or why there is none. elsewhere: its files are to be copied."""

    record: StageRecord | None
    reason: str
    elsewhere: bool = False


class StageStore:
    """The records of one run's folder, in `stages`.

    others: folders of runs whose stages may be used, those to be asked first first.
    """

    def __init__(self, folder: RunFolder, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.others = others

    def find(self, stage: str, depends: Mapping[str, str]) -> Found:
        """Look for the stage in this folder, then in the others; nothing is copied."""
        record, reason = usable(self.folder.path, stage, depends)
        if record is not None:
            return Found(record, "nothing that it depends on has changed")
        for other in self.others:
            theirs, why_not = usable(other, stage, depends)
            if theirs is not None:
                taken = theirs.model_copy(update={"taken_from": str(other)})
                return Found(taken, f"{other.name} has it, made from the same", elsewhere=True)
            if reason == NEVER and why_not != NEVER:
                reason = f"unlike in {other.name}, {why_not}"
        return Found(None, reason)

    def adopt(self, record: StageRecord) -> StageRecord:
        """Copy the files of a record that another run has."""
        assert record.taken_from is not None
        for name in record.files:
            target = self.folder.file(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".tmp")
            shutil.copyfile(Path(record.taken_from) / name, temporary)
            temporary.replace(target)
        self._write(record)
        return record

    def keep(
        self,
        stage: str,
        depends: Mapping[str, str],
        files: Sequence[str],
        result: Mapping[str, Any],
        seconds: float,
    ) -> StageRecord:
        """Record that a stage is finished."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        record = StageRecord(
            stage=stage,
            depends=dict(depends),
            files={name: sha256_of(self.folder.file(name)) for name in sorted(files)},
            result=json.loads(json.dumps(result)),
            seconds=round(seconds, 3),
            finished=now,
        )
        self._write(record)
        return record

    def forget(self, stage: str) -> None:
        """Let a stage count as not finished."""
        self.folder.file(f"{STAGES}/{stage}.json").unlink(missing_ok=True)

    def _write(self, record: StageRecord) -> None:
        self.folder.write(f"{STAGES}/{record.stage}.json", record.model_dump_json(indent=2) + "\n")


def read_record(folder: Path, stage: str) -> tuple[StageRecord | None, str]:
    """Return a folder's record of a stage, or None and why there is none."""
    path = folder / STAGES / f"{stage}.json"
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None, f"{path.name} is larger than any record"
        record = StageRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None, NEVER
    except (OSError, ValidationError, ValueError):
        return None, f"its record {path.name} is damaged"
    if record.stage != stage:
        return None, f"its record {path.name} is of the stage '{record.stage}'"
    return record, ""


def usable(folder: Path, stage: str, depends: Mapping[str, str]) -> tuple[StageRecord | None, str]:
    """Return a folder's record if it agrees and its files are intact, or None and why not."""
    record, reason = read_record(folder, stage)
    if record is None:
        return None, reason
    if record.depends != depends:
        return None, difference(record.depends, depends)
    for name, digest in record.files.items():
        path = folder / name
        if not path.is_file():
            return None, f"its file {name} is gone"
        if sha256_of(path) != digest:
            return None, f"its file {name} is not as it was written"
    return record, ""


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is no longer as it was, in words."""
    changed = [name for name in [*now, *before] if before.get(name) != now.get(name)]
    told = [_change(name, before, now) for name in dict.fromkeys(changed)]
    more = f" and {len(told) - _SHOWN} more changes" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more


def _change(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    old, new = before.get(name), now.get(name)
    if old is None:
        return f"{name} was added"
    if new is None:
        return f"{name} was removed"
    if max(len(old), len(new)) > 40:  # a hash, or as good as one
        return f"{name} changed"
    return f"{name} was {old} and is {new}"
