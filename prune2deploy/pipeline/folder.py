"""The folder of one run: where its files go, and its log."""

from __future__ import annotations

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
LATENCY = "latency"  # a folder with one file per device
PLAN = "plan.json"
ORIGINAL_WEIGHTS = "original.safetensors"
WEIGHTS = "pruned.safetensors"
ONNX = {"original": "original.onnx", "pruned": "pruned.onnx"}
PRECISIONS = {"fp16": "pruned.fp16.onnx", "int8": "pruned.int8.onnx"}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run; nothing in it is ever deleted by us."""

    path: Path

    @staticmethod
    def create(output: Path | None, name: str) -> RunFolder:
        """Make the folder: `output` if given, else the first free of runs/NAME, runs/NAME-2, ….

        Raises:
            RecipeError: `output` already holds a run, or is a file.
        """
        if output is not None:
            if output.exists() and not output.is_dir():
                raise RecipeError(f"--output {output} is a file; name a folder.")
            if (output / RECIPE).exists():
                raise RecipeError(
                    f"--output {output} already holds a run, and a run is never overwritten. "
                    "Name another folder, or remove this one yourself."
                )
            output.mkdir(parents=True, exist_ok=True)
            return RunFolder(output.resolve())
        base = Path("runs") / name
        number = 1
        while True:
            candidate = base if number == 1 else base.with_name(f"{name}-{number}")
            try:
                candidate.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return RunFolder(candidate.resolve())

    def file(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.path / name

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all."""
        target = self.file(name)
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


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
