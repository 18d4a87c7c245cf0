from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.yaml_text import MAX_CHARS, YamlError, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("~", None),
        ("", None),
        # Traps of YAML 1.1, which reads these as something else than text.
        ("on", "on"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("'1e-4'", "1e-4"),
        ("!!str 5", "5"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_written() -> None:
    assert read_yaml("{on: 1, 0: 2, 1.50: 3, null: 4}").value == {
        "on": 1,
        "0": 2,
        "1.50": 3,
        "null": 4,
    }


def test_lines_of_keys_and_items() -> None:
    lines = read_yaml("a: 1\nb:\n  c:\n    - 5\n    - d: 6\n").lines
    assert lines["a",] == 1
    assert lines["b",] == 2
    assert lines["b", "c"] == 3
    assert lines["b", "c", 0] == 4
    assert lines["b", "c", 1, "d"] == 5


def test_a_duplicate_key_is_a_problem_with_both_lines() -> None:
    text = read_yaml("a: 1\nb: 2\na: 3\n")
    assert text.value == {"a": 1, "b": 2}
    assert text.problems == [(3, ("a",), "is written twice, first on line 1; remove one")]


def test_an_alias_gives_a_copy() -> None:
    value = read_yaml("a: &x {b: 1}\nc: *x\n").value
    value["c"]["b"] = 2
    assert value["a"] == {"b": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!set {x}",
        "a: !mine 5",
        "a: !!int five",
        "a: !!bool maybe",
        f"a: {'9' * 5000}",
        "? [a, b]\n: 1",
        "x: {<<: {a: 1}}",
    ],
)
def test_what_is_no_plain_value_is_a_problem(text: str) -> None:
    found = read_yaml(text)
    assert len(found.problems) == 1
    assert found.problems[0][0] == 1


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\n b: 2\n", 2, "Check the indentation"),
        ("a:\n\tb: 2\n", 2, "spaces, not tabs"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb: \x07\n", 2, "special characters"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("[" * 100_000, 1, "deep"),
        ("- " * 5000, 1, "deep"),
        ("a: &a [*a]", 1, "aliases"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(YamlError, match=words) as caught:
        read_yaml(text)
    assert caught.value.line == line


def test_aliases_that_expand_without_end_are_refused() -> None:
    laughs = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(YamlError, match="expanded"):
        read_yaml("\n".join(laughs))


def test_a_huge_text_is_refused() -> None:
    with pytest.raises(YamlError, match="larger than 256 KiB"):
        read_yaml("#" * (MAX_CHARS + 1))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["on", "1e-4", "0x1", "~", "null", "-", "a: b", "# no", "<<", "1.", ".5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != "<<"), plain, max_size=4))
def test_what_is_written_reads_back(value: dict[str, Any]) -> None:
    if "<<" in str(value):
        return
    found = read_yaml(write_yaml(value))
    assert found.problems == []
    assert found.value == value


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,\n\t 01.~?", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):
        read_yaml(text)
