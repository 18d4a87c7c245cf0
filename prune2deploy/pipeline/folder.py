"""The folder of one run: where its files go, and its log."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prune2deploy.errors import RecipeError

RECIPE = "recipe.yaml"
LOG = "run.log"
METRICS = "metrics.json"
SUMMARY = "summary.md"
REPORT = "report.html"
LATENCY = "latency"  # a folder with one file per device
LAYERS = "layers"  # the same, where layers were timed
ENGINES = "engines"  # a folder per device
PLAN = "plan.json"
ORIGINAL_WEIGHTS = "original.safetensors"
WEIGHTS = "pruned.safetensors"
CUT_WEIGHTS = "cut.safetensors"  # where a training follows
DIST = "dist"  # a folder with the artifact
MASKS = "masks.safetensors"
STAGES = "stages"  # a folder with one file per finished stage
WORK = "work"  # a folder with what an unfinished stage needs to go on
TENSORBOARD = "tensorboard"  # a folder with events
TRACKING = "tracking.json"  # which run of MLflow this one is
LOCK = ".lock"
SEARCH = "search.json"
FRONT = "pareto.svg"
SCORES = "scores.safetensors"  # that rank the channels of a search
TRAINED = "searched.safetensors"  # the network of a search, where it was trained for the method
JOURNAL = "search.journal"  # the trials of a search
ONNX = {"original": "original.onnx", "pruned": "pruned.onnx"}
PRECISIONS = {"fp16": "pruned.fp16.onnx", "int8": "pruned.int8.onnx"}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run; what is finished in it is never deleted by us."""

    path: Path

    @staticmethod
    def choose(output: Path | None, name: str, recipe: str, *, again: bool = False) -> RunFolder:
        """Find the folder for a run; nothing is made yet.

        Args:
            output: the folder, if the user names one; else it is the newest of runs/NAME,
                runs/NAME-2, … if that holds a run of the same recipe, or the next of them.
            recipe: the recipe's text with every setting.
            again: some stages are to be run again whatever there is: without `output`, a run
                that is finished is then left as it is.

        Raises:
            RecipeError: `output` holds a run of another recipe, or is a file.
        """
        if output is not None:
            if output.exists() and not output.is_dir():
                raise RecipeError(f"--output {output} is a file; name a folder.")
            folder = RunFolder(output.absolute())
            if folder.holds_another(recipe):
                raise RecipeError(
                    f"--output {output} already holds a run of another recipe, and a run is never "
                    "overwritten. Name another folder beside it (stages that agree are taken from "
                    "there), or remove this one yourself."
                )
            return folder
        base = (Path("runs") / name).absolute()
        newest, number = base, 1
        while (following := _numbered(base, number + 1)).exists():
            newest, number = following, number + 1
        folder = RunFolder(newest)
        if not newest.exists() or not (folder.holds_another(recipe) or (again and folder.finished)):
            return folder
        return RunFolder(_numbered(base, number + 1))

    def holds_another(self, recipe: str) -> bool:
        """Whether a run of another recipe, or something else, is in the folder."""
        if not self.path.exists():
            return False
        try:
            return self.file(RECIPE).read_text(encoding="utf-8") != recipe
        except FileNotFoundError:
            return self.file(METRICS).exists()
        except (OSError, UnicodeDecodeError):
            return True

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return self.file(f"{STAGES}/report.json").exists()

    @property
    def others(self) -> list[Path]:
        """The folders of other runs beside this one, the newest first."""
        parent = self.path.parent
        found = [p.parent for p in parent.glob(f"*/{STAGES}") if p.parent != self.path]
        return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it for as long as the with-block lasts.

        Raises:
            RecipeError: another run is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.file(LOCK).open("a+") as file:
            try:
                # The kernel lets go of it when this process ends, however it does.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                file.seek(0)
                who = file.read(100).strip() or "unknown"
                raise RecipeError(
                    f"Another run is at work in {self.path} (process {who}). Wait for it, or "
                    "name another folder with --output."
                ) from err
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def file(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.path / name

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all."""
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
        return target

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Send what the package logs to run.log for as long as the with-block lasts."""
        handler = logging.FileHandler(self.file(LOG), encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package = logging.getLogger("prune2deploy")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
