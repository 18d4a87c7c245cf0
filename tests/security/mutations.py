"""Small changes to what is sound, as an attacker or a bad disk makes them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

_SHORT = """: - [ ] { } &a *a true null .nan -1 1e999 0x10 1_000 2026-11-25 ' " # | > ? é 🙂"""
_PIECES = (
    *_SHORT.split(),
    "",
    "!!python/object/apply:os.system ['x']",
    "<<: *a",
    "\t",
    "\x00",
    "\u202e",
    "\x1b[31m",
    "999999999999999999999",
    "../../../etc/passwd",
    "/dev/zero",
    "~root",
    "a" * 300,
    "\n",
    "\r\n",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
)


@st.composite
def changed_text(draw: st.DrawFn, sources: tuple[str, ...]) -> str:
    """One of the texts with a few pieces cut out, doubled, or put in."""
    text = draw(st.sampled_from(sources))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from(_PIECES) | st.text(max_size=8) | st.just(text[start:end] * 2))
        text = text[:start] + piece + text[end:]
    return text


@st.composite
def changed_bytes(draw: st.DrawFn, source: bytes) -> bytes:
    """The content with bytes changed, cut off or added."""
    raw = bytearray(source)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("flip", "cut", "add", "repeat")))
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        if kind == "flip" and raw:
            raw[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del raw[at : at + draw(st.integers(1, 64))]
        elif kind == "add":
            raw[at:at] = draw(st.binary(max_size=32))
        else:
            raw[at:at] = raw[at : at + 64]
    return bytes(raw)


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([float("inf"), float("nan"), -1, 0, 2**63, "", "\x1b[2J", "x" * 5000])
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3)
)


@st.composite
def changed_value(draw: st.DrawFn, source: Any) -> Any:
    """A JSON document with a few of its parts replaced, removed or added."""
    document = json.loads(json.dumps(source))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(document))
        if not places:
            return draw(_VALUES)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("replace", "remove", "add")))
        if kind == "replace":
            holder[key] = draw(_VALUES)
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(_VALUES)
        else:
            holder.append(draw(_VALUES))
    return document


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, one in value.items():
            yield value, key
            yield from _places(one)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield value, index
            yield from _places(one)
