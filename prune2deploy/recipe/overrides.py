"""`--set a.b=c`: values from the command line, put over those of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy.yaml_text import Key, YamlError, read_yaml


@dataclass(frozen=True)
class Override:
    """One `--set`, its value read as YAML, or one value of a sweep.

    where: file, line and key that it is written at; None: on the command line. base: folder that
    paths in it start from; None: the current one.
    """

    path: tuple[str, ...]
    value: Any
    where: str | None = None
    base: Path | None = None

    @property
    def shown(self) -> str:
        """How a message names it."""
        return self.where or f"--set {'.'.join(self.path)}"


class OverrideError(ValueError):
    """An override cannot be read, or there is no place for it."""


def parse_override(text: str) -> Override:
    """Read `a.b=value`.

    Raises:
        OverrideError: there is no key or no `=`, or the value is not YAML.
    """
    dotted, equals, written = text.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        raise OverrideError(
            f"--set {text}: should look like key.subkey=value, for example --set finetune.epochs=5"
        )
    override = f"--set {'.'.join(path)}"
    try:
        parsed = read_yaml(written)
    except YamlError as err:
        raise OverrideError(f"{override}: the value {err}") from err
    if parsed.problems:
        raise OverrideError(f"{override}: {parsed.problems[0][2]}")
    return Override(path, parsed.value)


def apply_override(data: dict[str, Any], override: Override) -> Key:
    """Put the value into `data`, which is changed; sections on the way are made if missing.

    Returns:
        The key it went to, with list positions as numbers.

    Raises:
        OverrideError: the path leads through a plain value, or past the end of a list.
    """
    place: Any = data
    key: list[str | int] = []
    for i, part in enumerate(override.path):
        step: str | int = part
        if isinstance(place, list):
            step = _position(place, part, override)
        elif not isinstance(place, dict):
            above = ".".join(override.path[:i])
            raise OverrideError(f"{override.shown}: {above} is {place!r}, which has no keys in it")
        key.append(step)
        if i == len(override.path) - 1:
            place[step] = override.value
        elif isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[step]
    return tuple(key)


def _position(items: Sequence[Any], part: str, override: Override) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise OverrideError(
            f"{override.shown}: '{part}' should be a position from 0 to {len(items) - 1} "
            f"in the list {list(items)!r}"
        )
    return int(part)
