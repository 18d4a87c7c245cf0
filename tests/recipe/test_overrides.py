from __future__ import annotations

from typing import Any

import pytest

from prune2deploy.recipe.overrides import OverrideError, apply_override, parse_override


@pytest.mark.parametrize(
    ("written", "path", "value"),
    [
        ("a=1", ("a",), 1),
        ("a.b=1e-3", ("a", "b"), 1e-3),
        ("a.b=x=y", ("a", "b"), "x=y"),
        ("a=[1, {b: no}]", ("a",), [1, {"b": "no"}]),
        ("a=", ("a",), None),
        ("a = 5", ("a",), 5),
    ],
)
def test_values_are_yaml(written: str, path: tuple[str, ...], value: object) -> None:
    override = parse_override(written)
    assert (override.path, override.value) == (path, value)


@pytest.mark.parametrize("written", ["a", "=1", "a..b=1", ".a=1", "", "a.=1"])
def test_what_is_no_assignment_is_refused(written: str) -> None:
    with pytest.raises(OverrideError, match=r"key\.subkey=value"):
        parse_override(written)


@pytest.mark.parametrize(
    ("written", "words"),
    [("a.b=[1", "--set a.b: the value is not valid YAML"), ("a=!x 1", "tag !x is not allowed")],
)
def test_a_value_that_is_no_yaml_is_refused(written: str, words: str) -> None:
    with pytest.raises(OverrideError, match=words):
        parse_override(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a.b=9", {"a": {"b": 9, "c": [1, 2]}}),
        ("a.c.1=9", {"a": {"b": 0, "c": [1, 9]}}),
        ("a=9", {"a": 9}),
        ("d.e.f=9", {"a": {"b": 0, "c": [1, 2]}, "d": {"e": {"f": 9}}}),
    ],
)
def test_the_value_lands_where_it_was_sent(written: str, expected: dict[str, Any]) -> None:
    data: dict[str, Any] = {"a": {"b": 0, "c": [1, 2]}}
    apply_override(data, parse_override(written))
    assert data == expected


def test_an_empty_section_can_be_filled() -> None:
    data: dict[str, Any] = {"a": None}
    apply_override(data, parse_override("a.b=1"))
    assert data == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("a.b.x=1", r"--set a\.b\.x: a\.b is 0"),
        ("a.c.2=1", "from 0 to 1"),
        ("a.c.-1=1", "from 0 to 1"),
        ("a.c.b=1", "'b' should be a position"),
    ],
)
def test_a_path_through_a_plain_value_is_refused(written: str, words: str) -> None:
    data: dict[str, Any] = {"a": {"b": 0, "c": [1, 2]}}
    with pytest.raises(OverrideError, match=words):
        apply_override(data, parse_override(written))
