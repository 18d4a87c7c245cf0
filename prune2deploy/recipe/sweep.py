"""A sweep: one recipe with many values, its schema and its loader."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from prune2deploy.errors import RecipeError
from prune2deploy.recipe.combining import MAX_COMBINATIONS, Chosen, combine, count, names_of
from prune2deploy.recipe.fields import Section
from prune2deploy.recipe.loader import error_of, find_problems, text_of
from prune2deploy.recipe.overrides import Override
from prune2deploy.recipe.problems import problems_of
from prune2deploy.recipe.schema import Recipe
from prune2deploy.yaml_text import Key, YamlError, read_yaml

_OURS = {"name": "a run's name is made of its values", "base_dir": "it belongs in the recipe"}


class SweepSection(Section):
    """A recipe, the values to put in it, and what one task may use."""

    name: str | None = Field(
        default=None, description="Name of the sweep; left out: the file's name."
    )
    recipe: Path = Field(description="The recipe, with a path from the sweep's own folder.")
    over: dict[str, list[Any]] = Field(
        default={},
        description="Keys of the recipe with dots, such as prune.method, and the values of each; "
        "every combination of them is run.",
    )
    also: list[dict[str, Any]] = Field(
        default=[],
        description="Further combinations: keys of the recipe with dots, and one value of each.",
    )
    address: str | None = Field(
        default=None,
        min_length=1,
        description="Address of a Ray cluster, or auto; left out: one on this machine.",
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="Cores of one task, and its threads; left out: the recipe's threads, or one.",
    )
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of one task, or a share of one; left out: one where there are any.",
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="Memory to set aside for a task, in units of 1,000,000,000 bytes; left out: "
        "not looked at.",
    )
    parallel: int | None = Field(
        default=None, ge=1, description="Most tasks at once; left out: as many as fit."
    )
    retries: int = Field(
        default=2, ge=0, description="How often a combination goes on after its worker died."
    )

    @field_validator("over", mode="before")
    @classmethod
    def _values_are_lists(cls, over: Any) -> Any:
        for key, values in over.items() if isinstance(over, dict) else ():
            if not isinstance(values, list) or not values:
                raise ValueError(
                    f"{key} should have a list of values, such as prune.method: [l1, chip] "
                    f"(keys within sections with dots), found {values!r}"
                )
        return over

    def misfits(self) -> list[tuple[Key, str]]:
        """Keys that cannot be swept, values that are there twice, shares above one."""
        found: list[tuple[Key, str]] = []
        places: list[tuple[Key, str]] = [(("over", key), key) for key in self.over]
        places += [(("also", i, key), key) for i, one in enumerate(self.also) for key in one]
        for place, key in places:
            if key in _OURS:
                found.append((place, f"cannot be swept: {_OURS[key]}"))
            elif not all(key.split(".")):
                found.append((place, "should be a key of the recipe, such as prune.method"))
        for key, values in self.over.items():
            twice = [one for i, one in enumerate(values) if one in values[:i]]
            if twice:
                found.append((("over", key), f"has {twice[0]!r} twice; remove one"))
        if not self.over and not self.also:
            found.append((("over",), "missing. Expected: keys of the recipe with lists of values"))
        if count(self.over) > MAX_COMBINATIONS:
            text = f"makes {count(self.over)} combinations, and {MAX_COMBINATIONS} is the most"
            found.append((("over",), text))
        for name in ("cpus", "gpus"):
            share = getattr(self, name)
            if share is not None and share > 1 and share != int(share):
                found.append(((name,), f"should be whole above 1, found {share:g}"))
        return found


@dataclass(frozen=True)
class Combination:
    """One run of a sweep. values: by key of the recipe, as they were written."""

    name: str
    values: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read; every one of its recipes is right."""

    name: str
    settings: SweepSection
    combinations: tuple[Combination, ...]

    @property
    def cpus(self) -> float:
        """Cores of one task."""
        most = max(one.recipe.threads or 1 for one in self.combinations)
        return self.settings.cpus or float(most)


def load_sweep(path: Path | str) -> Sweep:
    """Read and check a sweep, and the recipe of each of its combinations.

    Raises:
        RecipeError: lists all problems, each with file, line and key.
    """
    path = Path(path)
    return _Reading(path).sweep(text_of(path, "sweep"))


class _Reading:
    """One reading of one sweep: the problems so far, and where each key was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[Key, int] = {}

    def sweep(self, text: str) -> Sweep:
        settings = self._settings(text)
        if settings is None or self.problems:
            raise error_of(self.problems, "sweep")
        chosen = combine(settings.over, settings.also)
        for place, earlier in chosen.twice:
            self._add(("also", place), f"is combination {earlier} again; remove it")
        combinations = self._combinations(settings, chosen)
        if self.problems:
            raise error_of(self.problems, "sweep")
        return Sweep(settings.name or self.path.stem, settings, tuple(combinations))

    def _settings(self, text: str) -> SweepSection | None:
        try:
            parsed = read_yaml(text)
        except YamlError as err:
            where = f"{self.path}:{err.line}" if err.line else str(self.path)
            self.problems.append((err.line or 1, f"{where}: {err}"))
            return None
        self.lines = parsed.lines
        for _, key, message in parsed.problems:
            self._add(key, message)
        if not isinstance(parsed.value, dict):
            found = "nothing" if parsed.value is None else repr(parsed.value)[:60]
            self._add((), f"a sweep is a mapping with the keys recipe and over, found {found}")
            return None
        try:
            settings = SweepSection.model_validate(parsed.value)
        except ValidationError as err:
            for key, message in problems_of(err, parsed.value, SweepSection):
                self._add(key, message)
            return None
        for key, message in settings.misfits():
            self._add(key, message)
        return settings

    def _combinations(self, settings: SweepSection, chosen: Chosen) -> list[Combination]:
        """Read the recipe once per combination; a problem of several is told once."""
        recipe_path = self.path.parent / settings.recipe.expanduser()
        try:
            text = text_of(recipe_path)
        except RecipeError as err:
            self._add(("recipe",), str(err))
            return []
        names = names_of([values for values, _ in chosen.combinations])
        met: dict[tuple[int, str], list[str]] = {}
        found: list[Combination] = []
        for name, (values, places) in zip(names, chosen.combinations, strict=True):
            overrides: list[str | Override] = [Override(("name",), name, str(self.path))]
            overrides += [
                Override(
                    tuple(key.split(".")),
                    copy.deepcopy(value),
                    f"{self.path}:{self._line(places[key])}: {_dotted(places[key])}",
                    self.path.absolute().parent,
                )
                for key, value in values.items()
            ]
            recipe, problems = find_problems(text, recipe_path, overrides)
            for problem in problems:
                met.setdefault(problem, []).append(name)
            if recipe is not None:
                found.append(Combination(name, dict(values), recipe))
        self._tell(met, len(names))
        return found

    def _tell(self, met: Mapping[tuple[int, str], Sequence[str]], total: int) -> None:
        for (order, text), names in met.items():
            # What every combination has, is the recipe's own.
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            where = "" if len(names) == total else f" (in {names[0]}{more})"
            self.problems.append((order, text + where))

    def _add(self, key: Key, message: str) -> None:
        line = self._line(key)
        dotted = f"{_dotted(key)}: " if key else ""
        self.problems.append((line, f"{self.path}:{line}: {dotted}{message}"))

    def _line(self, key: Key) -> int:
        """Line of a key, or of what it is missing from."""
        places = (key[:length] for length in range(len(key), -1, -1))
        return next((self.lines[place] for place in places if place in self.lines), 1)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
