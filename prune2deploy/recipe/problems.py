"""pydantic's findings in the words of a recipe: which key, what was found, what to write."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prune2deploy.errors import nearest_name_hint
from prune2deploy.methods import METHODS
from prune2deploy.recipe.fields import CrossCheckError
from prune2deploy.recipe.pruning import PruneSection
from prune2deploy.recipe.schema import Recipe
from prune2deploy.yaml_text import Key

_PLAIN = (
    ("tuple", "list"),
    ("Tuple", "list"),
    ("dictionary", "mapping"),
    ("Dictionary", "mapping"),
    (" after validation", ""),
    (", unable to parse string as a number", ""),
    (", unable to parse string as an integer", ""),
    (", unable to interpret input", ""),
)
_INSTANCE = re.compile(r" or instance of \w+")


def problems_of(
    error: ValidationError, data: Mapping[str, Any], root: type[BaseModel] = Recipe
) -> list[tuple[Key, str]]:
    """Return every problem as (key, message).

    Args:
        error: what validating `data` raised.
        data: with the method's options under `prune.options`, as the schema has them.
        root: what it was validated as.

    Returns:
        Keys as the user writes them, so without `options`.
    """
    found: list[tuple[Key, str]] = []
    for details in error.errors():
        for key, message in _expanded(details, data, root):
            problem = (_as_written(key), message)
            if problem not in found:
                found.append(problem)
    return found


def _expanded(
    details: ErrorDetails, data: Mapping[str, Any], root: type[BaseModel]
) -> Iterator[tuple[Key, str]]:
    key = _inside(data, details["loc"], absent=details["type"] == "missing")
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, CrossCheckError):
        yield from (((*key, *inner), message) for inner, message in cause.problems)
    elif isinstance(cause, ValidationError):
        for inner in cause.errors():
            yield (*key, *inner["loc"]), _message(inner, (*key, *inner["loc"]), data, root)
    elif details["type"] == "missing" and isinstance(details["loc"][-1], int):
        yield (
            key[:-1],
            f"has too few entries, found {details['input']!r}.{_expected(key[:-1], root)}",
        )
    else:
        yield key, _message(details, key, data, root)


def _inside(data: Any, loc: Key, *, absent: bool) -> Key:
    """Leave out the names of union members, which pydantic puts among the keys.

    absent: the last key is not in the data, and that is the problem.
    """
    key: list[str | int] = []
    for i, part in enumerate(loc):
        is_last = i == len(loc) - 1
        if isinstance(data, dict):
            if part in data or (is_last and absent):
                key.append(part)
                data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            key.append(part)
            data = data[part] if part < len(data) else None
    return tuple(key)


def _as_written(key: Key) -> Key:
    if key[:2] == ("prune", "options"):
        return ("prune", *key[2:])
    return key


def _message(
    details: ErrorDetails, key: Key, data: Mapping[str, Any], root: type[BaseModel]
) -> str:
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        return _unknown_key(key, data, root)
    if kind == "missing":
        return f"missing.{_expected(key, root)}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    message = details["msg"].replace("Input should", "should")
    for theirs, ours in _PLAIN:
        message = message.replace(theirs, ours)
    message = _INSTANCE.sub("", message)
    return f"{message}, found {_short(found)}"


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_key(key: Key, data: Mapping[str, Any], root: type[BaseModel]) -> str:
    name = str(key[-1])
    if key[:2] == ("prune", "options"):
        method = str(data["prune"].get("method"))
        known = [*METHODS[method].options.model_fields, *_keys(PruneSection)]
        owners = [m.name for m in METHODS.values() if name in m.options.model_fields]
        if owners:
            *most, last = owners
            named = f"{', '.join(most)} and {last}" if most else last
            return f"is an option of {named}, not of {method}; remove it"
    else:
        known = list(_keys(_model_at(key[:-1], root)))
    homes = [".".join(place) for place in _places(root) if place[-1] == name]
    if homes and len(homes) <= 4 and name not in known:
        return f"unknown key here; it belongs at {' or '.join(homes)}"
    return f"unknown key. {nearest_name_hint(name, known)}"


def _expected(key: Key, root: type[BaseModel]) -> str:
    for name, field in _model_at(key[:-1], root).model_fields.items():
        if (field.alias or name) == key[-1] and field.description:
            return f" Expected: {field.description[0].lower()}{field.description[1:]}"
    return ""


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """Return what may be written in a section: key -> annotation."""
    return {
        field.alias or name: field.annotation
        for name, field in model.model_fields.items()
        if (model, name) != (PruneSection, "options")
    }


def _model_at(key: Key, root: type[BaseModel]) -> type[BaseModel]:
    model = root
    for part in key:
        model = _sections_in(_keys(model).get(str(part)))[0]
    return model


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections an annotation such as `X | None` allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [
        section
        for inner in typing.get_args(annotation)
        if inner is not NoneType
        for section in _sections_in(inner)
    ]


def _places(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, annotation in _keys(model).items():
        yield (*above, key)
        for section in _sections_in(annotation):
            yield from _places(section, (*above, key))
