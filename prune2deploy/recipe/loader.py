"""Reads a recipe: file, overrides and schema, with every problem found reported at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prune2deploy.errors import RecipeError
from prune2deploy.recipe.fields import Section
from prune2deploy.recipe.overrides import Override, OverrideError, apply_override, parse_override
from prune2deploy.recipe.problems import problems_of
from prune2deploy.recipe.pruning import PruneSection
from prune2deploy.recipe.schema import EARLY_STOP_NEEDS_VAL, Recipe
from prune2deploy.recipe.sources import anchored, python_file, split_folders
from prune2deploy.yaml_text import MAX_CHARS, Key, YamlError, read_yaml, write_yaml

_PATHS: tuple[Key, ...] = (("model", "checkpoint"), ("data", "root"))
_SOURCES: tuple[Key, ...] = (("model", "source"), ("data", "source"), ("task",))
_STORAGE: Key = ("prune", "search", "storage")  # a path, or the URL of a data base
_AFTER_THE_FILE = sys.maxsize


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, and that the files it names exist.

    Args:
        path: the YAML file.
        overrides: `key.subkey=value` each, the value in YAML; they replace what the file says.

    Returns:
        The recipe with absolute paths. Paths in the file start from its folder, paths in
        overrides from the current folder.

    Raises:
        RecipeError: lists all problems, each with file, line and key.
    """
    path = Path(path)
    reading = _Reading(path)
    recipe = reading.recipe(text_of(path), overrides, look_for_files=True)
    return _whole(recipe, reading)


def text_of(path: Path, kind: str = "recipe") -> str:
    """Read a file of settings.

    Raises:
        RecipeError: it is not there, or no text.
    """
    try:
        with path.open("rb") as file:
            # One byte more than a recipe may have: enough to refuse a huge file unread.
            raw = file.read(4 * MAX_CHARS + 1)
        return raw.decode("utf-8-sig")
    except FileNotFoundError as err:
        hint = ", or write one with 'prune2deploy init'" if kind == "recipe" else ""
        raise RecipeError(f"{path}: no such {kind}. Check the path{hint}") from err
    except IsADirectoryError as err:
        raise RecipeError(f"{path}: is a folder; name the {kind} file in it") from err
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise RecipeError(f"{path}:{line}: should be text in UTF-8, found other bytes") from err


def parse_recipe(text: str, path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Check the text of a recipe as `load_recipe` does, without looking for the files it names.

    Args:
        text: YAML.
        path: where it is, or would be: relative paths start from its folder.
        overrides: as in `load_recipe`.

    Raises:
        RecipeError: lists all problems.
    """
    reading = _Reading(Path(path))
    return _whole(reading.recipe(text, overrides, look_for_files=False), reading)


def find_problems(
    text: str, path: Path, overrides: Sequence[str | Override]
) -> tuple[Recipe | None, list[tuple[int, str]]]:
    """Read a recipe as `load_recipe` does; nothing is raised.

    Returns:
        The recipe if it is right, and every problem with what it is sorted by.
    """
    reading = _Reading(path)
    recipe = reading.recipe(text, overrides, look_for_files=True)
    return (None if reading.problems else recipe), reading.problems


def error_of(problems: Sequence[tuple[int, str]], kind: str) -> RecipeError:
    """Return one error that lists all problems in the order of the file."""
    texts = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
    if len(texts) == 1:
        return RecipeError(texts[0])
    return RecipeError("\n  ".join([f"{len(texts)} problems in the {kind}", *texts]))


def _whole(recipe: Recipe | None, reading: _Reading) -> Recipe:
    if recipe is None or reading.problems:
        raise error_of(reading.problems, "recipe")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every setting spelled out; it reads back as the same."""
    data = _written(recipe)
    prune = data["prune"]
    options = prune.pop("options")
    data["prune"] = {"method": prune.pop("method"), **options, **prune}
    return write_yaml(data)


def _written(section: Section) -> dict[str, Any]:
    """Return the keys of a section that say something; None always means left out."""
    named = {
        field.alias or name: getattr(section, name)
        for name, field in type(section).model_fields.items()
    }
    return {key: _plain(value) for key, value in named.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _written(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


class _Reading:
    """One reading of one recipe: the problems so far, and where each key was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[Key, int] = {}
        self.overrides: dict[Key, Override] = {}

    def recipe(
        self, text: str, overrides: Sequence[str | Override], *, look_for_files: bool
    ) -> Recipe | None:
        data = self._read(text)
        recipe = None
        if data is not None:
            for written in overrides:
                self._override(data, written)
            self._anchor_paths(data)
            if data.get("name") is None:
                data["name"] = self.path.stem
            _gather_options(data)
            if look_for_files:
                self._look_for_files(data)
            recipe = self._validated(data)
        if recipe is not None and look_for_files:
            self._look_for_validation_images(recipe)
        return recipe

    def _read(self, text: str) -> dict[str, Any] | None:
        try:
            parsed = read_yaml(text)
        except YamlError as err:
            where = f"{self.path}:{err.line}" if err.line else str(self.path)
            self.problems.append((err.line or 1, f"{where}: {err}"))
            return None
        self.lines = parsed.lines
        for line, key, message in parsed.problems:
            self._add(line, key, message)
        if isinstance(parsed.value, dict):
            return parsed.value
        if not parsed.problems:
            found = "nothing" if parsed.value is None else repr(parsed.value)[:60]
            self._add(
                1,
                (),
                f"a recipe is a mapping with the keys model, data and prune, found {found}. "
                "'prune2deploy init' writes one to start from",
            )
        return None

    def _validated(self, data: dict[str, Any]) -> Recipe | None:
        try:
            return Recipe.model_validate(data)
        except ValidationError as err:
            for key, message in problems_of(err, data):
                self._report(key, message)
            return None

    def _add(self, line: int, key: Key, message: str) -> None:
        dotted = f"{'.'.join(map(str, key))}: " if key else ""
        self.problems.append((line, f"{self.path}:{line}: {dotted}{message}"))

    def _report(self, key: Key, message: str) -> None:
        """Add a problem at the place of the key, or of what it is missing from."""
        for length in range(len(key), -1, -1):
            override = self.overrides.get(key[:length])
            if override:
                inner = f"{'.'.join(map(str, key))}: " if length < len(key) else ""
                self.problems.append((_AFTER_THE_FILE, f"{override.shown}: {inner}{message}"))
                return
            if key[:length] in self.lines:
                self._add(self.lines[key[:length]], key, message)
                return

    def _override(self, data: dict[str, Any], written: str | Override) -> None:
        try:
            override = parse_override(written) if isinstance(written, str) else written
            key = apply_override(data, override)
        except OverrideError as err:
            self.problems.append((_AFTER_THE_FILE, str(err)))
            return
        places: tuple[dict[Key, Any], ...] = (self.lines, self.overrides)
        for places_of in places:
            for replaced in [place for place in places_of if place[: len(key)] == key]:
                del places_of[replaced]
        self.overrides[key] = override

    def _anchor_paths(self, data: dict[str, Any]) -> None:
        """Make paths absolute, each from the folder of where it was written."""
        home = self.path.absolute().parent
        base_dir = data.get("base_dir")
        if base_dir is None:
            data["base_dir"] = str(home)
        elif isinstance(base_dir, str):
            home = self._base(("base_dir",), home) / base_dir
            data["base_dir"] = str(home)
        for key in _PATHS:
            _change(data, key, partial(_absolute, self._base(key, home)))
        base = self._base(_STORAGE, home)
        _change(data, _STORAGE, lambda text: text if "://" in text else _absolute(base, text))
        for key in _SOURCES:
            if self._override_of(key) is not None:
                _change(data, key, partial(anchored, base=self._base(key, home)))

    def _base(self, key: Key, home: Path) -> Path:
        """Folder that a path starts from: that of where it was written."""
        override = self._override_of(key)
        return home if override is None else (override.base or Path.cwd())

    def _override_of(self, key: Key) -> Override | None:
        places = (key[:length] for length in range(1, len(key) + 1))
        return next((self.overrides[place] for place in places if place in self.overrides), None)

    def _look_for_files(self, data: dict[str, Any]) -> None:
        for key, exists in ((_PATHS[0], os.path.isfile), (_PATHS[1], os.path.exists)):
            path = _value(data, key)
            if isinstance(path, str) and not exists(path):
                kind = "file" if exists is os.path.isfile else "file or folder"
                self._report(key, f"no such {kind}: {path}")
        for key in _SOURCES:
            source = _value(data, key)
            file = python_file(source) if isinstance(source, str) else None
            if file and not os.path.isfile(path := _absolute(Path(str(data["base_dir"])), file)):
                self._report(key, f"no such file: {path}")

    def _look_for_validation_images(self, recipe: Recipe) -> None:
        data = recipe.data
        if data.source != "imagefolder" or data.val or not (data.root and data.root.is_dir()):
            return
        if "val" in split_folders(data.root):
            return
        for key, run in recipe.training_sections().items():
            if run.early_stop:
                self._report((*key, "early_stop"), EARLY_STOP_NEEDS_VAL)


def _gather_options(data: dict[str, Any]) -> None:
    """Move what is not a key of `prune` itself to where the schema has the method's options."""
    prune = data.get("prune")
    if not isinstance(prune, dict):
        return
    own = set(PruneSection.model_fields) - {"options"}
    options = {key: value for key, value in prune.items() if key not in own}
    data["prune"] = {key: value for key, value in prune.items() if key in own}
    if options:
        data["prune"]["options"] = options


def _absolute(base: Path, path: str) -> str:
    # os.path leaves a "~nobody" as it is, where pathlib raises.
    return str(base / os.path.expanduser(path))


def _value(data: Any, key: Key) -> Any:
    for part in key:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _change(data: dict[str, Any], key: Key, change: Callable[[str], str]) -> None:
    place = _value(data, key[:-1])
    if isinstance(place, dict) and isinstance(place.get(key[-1]), str):
        place[key[-1]] = change(place[key[-1]])
