"""Combinations of values, and names for them that can be read and name a folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prune2deploy.yaml_text import Key

MAX_COMBINATIONS = 10_000
MAX_NAME = 80

Values = Mapping[str, Any]


@dataclass
class Chosen:
    """combinations: values by key, and where each was written. twice: (place in also, earlier)."""

    combinations: list[tuple[Values, dict[str, Key]]] = field(default_factory=list)
    twice: list[tuple[int, int]] = field(default_factory=list)


def count(over: Mapping[str, Sequence[Any]]) -> int:
    """How many combinations there are."""
    return math.prod(map(len, over.values())) if over else 0


def combine(over: Mapping[str, Sequence[Any]], also: Sequence[Values]) -> Chosen:
    """Return every combination of `over`, the last key's values changing fastest, and `also`."""
    chosen = Chosen()
    places: dict[str, list[Key]] = {
        key: [("over", key, i) for i in range(len(values))] for key, values in over.items()
    }
    if over:
        values_of = itertools.product(*over.values())
        for values, keys in zip(values_of, itertools.product(*places.values()), strict=True):
            named: Values = dict(zip(over, values, strict=True))
            chosen.combinations.append((named, dict(zip(over, keys, strict=True))))
    for i, one in enumerate(also):
        known = [values for values, _ in chosen.combinations]
        if one in known:
            chosen.twice.append((i, known.index(one) + 1))
        chosen.combinations.append((one, {key: ("also", i, key) for key in one}))
    return chosen


def names_of(combinations: Sequence[Values]) -> list[str]:
    """Return a name per combination, all different: 'l1-macs0.5-seed0'.

    A name depends on the combination's own values and on which keys are swept, so that a sweep
    that gets more values finds its earlier runs.
    """
    keys = dict.fromkeys(key for values in combinations for key in values)
    short = _short_keys(list(keys))
    plain = [_name(values, short) for values in combinations]
    folded = [name.lower() for name in plain]  # for file systems that do not tell A from a
    return [
        name if folded.count(name.lower()) == 1 and len(name) <= MAX_NAME else _hashed(name, values)
        for name, values in zip(plain, combinations, strict=True)
    ]


def _hashed(name: str, values: Values) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    return f"{name[: MAX_NAME - 9]}-{digest[:8]}"


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it where two keys have the same last part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: key if list(last.values()).count(last[key]) > 1 else last[key] for key in keys}


def _name(values: Values, short: Mapping[str, str]) -> str:
    parts = [_said(short[key], value) for key, value in values.items()]
    return "-".join(parts) or "recipe"


def _said(key: str, value: Any) -> str:
    """One value with its key, where it does not speak for itself."""
    if isinstance(value, Mapping):
        return "-".join(_said(inner, one) for inner, one in value.items()) or f"{key}-empty"
    if isinstance(value, list):
        return _plain(key) + "x".join(_said("", one) for one in value)
    if isinstance(value, str):
        # A whole key was needed to tell it from another one.
        return _plain(f"{key}-{value}" if "." in key else value)
    if value is None:
        return _plain(f"{key}-none")
    if isinstance(value, bool):
        return _plain(f"{key}-{str(value).lower()}")
    return _plain(f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+]+", "-", text).strip("-.") or "value"
