"""The whole recipe, and what its sections must be together."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from prune2deploy.methods import METHODS
from prune2deploy.recipe.fields import CrossCheckError, Section
from prune2deploy.recipe.pruning import PruneSection
from prune2deploy.recipe.sections import (
    DataSection,
    ExportSection,
    GatesSection,
    LogSection,
    ModelSection,
    ProfileSection,
    Statistics,
)
from prune2deploy.recipe.sources import TASK_NAMES, check_source
from prune2deploy.recipe.training import ProcessesSection, TrainSection
from prune2deploy.yaml_text import Key

_NAMED_STATISTICS_CHANNELS = 3


class Recipe(Section):
    """From a trained network to a smaller, measured one."""

    name: str = Field(
        default="recipe", description="Name of the run; left out: the recipe's file name."
    )
    base_dir: Path = Field(
        default_factory=Path.cwd,
        description="Folder that relative paths start from; left out: the recipe's own folder.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything that is random.")
    threads: int | None = Field(
        default=None, ge=1, description="Threads for training and evaluation; left out: all."
    )
    task: str = Field(
        default="classification", description="classification, or path/to/task.py:ClassName."
    )
    model: ModelSection = Field(description="Where the trained network comes from.")
    data: DataSection = Field(description="Where the images come from.")
    pretrain: TrainSection | None = Field(
        default=None,
        description="Train the network first; 'before' is then the network after this.",
    )
    train: ProcessesSection = Field(
        default=ProcessesSection(), description="Where all trainings of the recipe run."
    )
    prune: PruneSection = Field(description="What is removed.")
    finetune: TrainSection | None = Field(
        default=None, description="Train the pruned network; left out: it is exported as cut."
    )
    export: ExportSection = Field(
        default=ExportSection(), description="What is written for the device."
    )
    profile: ProfileSection = Field(
        default=ProfileSection(), description="Where and how the latency is measured."
    )
    gates: GatesSection = Field(default=GatesSection(), description="What the result must hold.")
    log: LogSection = Field(
        default=LogSection(), description="TensorBoard and MLflow, beside the run's own log."
    )

    @field_validator("name")
    @classmethod
    def _name_can_name_a_folder(cls, name: str) -> str:
        bad = not name.strip() or name in (".", "..") or len(name) > 100
        if bad or any(char in "/\\" or not char.isprintable() for char in name):
            raise ValueError(
                f"should be usable as a folder's name (no slashes, at most 100 characters), "
                f"found {name!r}"
            )
        return name

    @field_validator("task")
    @classmethod
    def _task_has_a_known_form(cls, task: str) -> str:
        return check_source(task, "task", TASK_NAMES)

    @model_validator(mode="after")
    def _everything_fits(self) -> Self:
        # Here and not in each section: an error in one section would hide all those after it.
        problems = self.all_misfits()
        if problems:
            raise CrossCheckError(problems)
        return self

    def misfits(self) -> list[tuple[Key, str]]:
        """What sections must be to each other."""
        problems = [
            *self._training_problems(),
            *self._weights_problems(),
            *self._image_problems(),
            *self._process_problems(),
        ]
        wanted = self.gates.precision
        if wanted not in (None, "fp32", *self.export.precision):
            text = f"is {wanted}, and export.precision makes {', '.join(self.export.precision)}"
            problems.append((("gates", "precision"), text))
        if self.profile.batch != self.export.onnx.batch:
            problems.append(
                (
                    ("profile", "batch"),
                    f"is {self.profile.batch}, and the ONNX file has a fixed batch of "
                    f"{self.export.onnx.batch} (export.onnx.batch): make them equal",
                )
            )
        return problems

    @property
    def gated_precision(self) -> str:
        """Which of the pruned network's files the gates look at."""
        return self.gates.precision or self.export.precision[-1]

    def training_sections(self) -> dict[tuple[str, ...], TrainSection]:
        """Return every training run of the recipe under its key, in order."""
        runs = {
            ("pretrain",): self.pretrain,
            ("prune", "train"): self.prune.train,
            ("finetune",): self.finetune,
            ("export", "int8", "finetune"): self.export.int8.finetune,
        }
        return {key: run for key, run in runs.items() if run is not None}

    def _process_problems(self) -> list[tuple[Key, str]]:
        """A device is measured by one process, and a training within prune is by all."""
        prune = self.prune
        trains = prune.train is not None or prune.schedule.rounds > 1
        if self.train.several and trains and prune.budget.timed:
            text = (
                "trains in several processes, and the same stage measures for a budget of time. "
                "Train for pruning in one process, or use a budget of macs"
            )
            return [(("train", "devices"), text)]
        if self.train.several and prune.train is not None and prune.search is not None:
            text = "trains for pruning in several processes, and a search is done by one"
            return [(("train", "devices"), text)]
        return []

    def _training_problems(self) -> list[tuple[Key, str]]:
        problems: list[tuple[Key, str]] = []
        # Only these sources can bring no validation images of their own; of the others,
        # the loader (image folders) or the data itself knows.
        no_val = self.data.val == 0 and self.data.source.split(":")[0] in ("digits", "torchvision")
        for key, run in self.training_sections().items():
            if run.early_stop and no_val:
                problems.append(((*key, "early_stop"), EARLY_STOP_NEEDS_VAL))
        if self.pretrain and self.pretrain.distill:
            problems.append(
                (
                    ("pretrain", "distill"),
                    "the teacher is the network that pretrain makes; distill belongs in finetune",
                )
            )
        schedule = self.prune.schedule
        by_finetune = METHODS[self.prune.method].rounds == "finetune"
        between = by_finetune and schedule.kind == "iterative" and schedule.rounds > 1
        if between and schedule.finetune_epochs > 0 and self.finetune is None:
            problems.append(
                (
                    ("prune", "schedule"),
                    "trains between rounds with the settings of 'finetune', which is missing; "
                    "add it, or set finetune_epochs: 0",
                )
            )
        return problems

    def _weights_problems(self) -> list[tuple[Key, str]]:
        own_code = self.model.source.partition(":")[0].endswith(".py")
        asked = self.model.args.get("weights") or self.model.args.get("pretrained")
        if own_code or asked or self.model.checkpoint or self.pretrain:
            return []
        return [
            (
                ("model", "checkpoint"),
                f"missing; {self.model.source} starts from random weights, and there is nothing to "
                "keep in them. Name the trained weights here or with --set model.checkpoint=PATH, "
                "or add a 'pretrain' section",
            )
        ]

    def _image_problems(self) -> list[tuple[Key, str]]:
        problems: list[tuple[Key, str]] = []
        channels, height, width = self.model.input
        normalize = self.data.normalize
        if isinstance(normalize, Statistics):
            expected = len(normalize.mean)
        else:
            expected = channels if normalize == "none" else _NAMED_STATISTICS_CHANNELS
        if expected != channels:
            shown = f"'{normalize}'" if isinstance(normalize, str) else "mean"
            problems.append(
                (
                    ("data", "normalize"),
                    f"{shown} has {expected} channels, and model.input has {channels}. Write "
                    "normalize: none, or {mean: [...], std: [...]} with one number per channel",
                )
            )
        if self.data.resize is not None and self.data.resize < max(height, width):
            problems.append(
                (
                    ("data", "resize"),
                    f"should be at least {max(height, width)}, the model's input, "
                    f"found {self.data.resize}",
                )
            )
        return problems


EARLY_STOP_NEEDS_VAL = (
    "needs validation images, and there are none. Set data.val to a share of the training "
    "images, such as 0.1"
)
