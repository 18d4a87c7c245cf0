import sys
from pathlib import Path

import pytest

from prune2deploy.errors import DataError, ModelError
from prune2deploy.models import import_from_file


def write(folder: Path, text: str, name: str = "user_file.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_same_file_is_executed_once_and_a_changed_one_again(tmp_path: Path) -> None:
    write(tmp_path, "class A: pass\nclass B(A): pass\n")
    first = import_from_file("user_file.py:A", tmp_path)
    assert issubclass(import_from_file("user_file.py:B", tmp_path), first)
    write(tmp_path, "class A: x = 12345\n")
    assert import_from_file("user_file.py:A", tmp_path).x == 12345


def test_dataclasses_with_postponed_annotations_work(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import ClassVar\n@dataclass\nclass A:\n    x: int\n    n: ClassVar[int] = 3\n",
    )
    assert import_from_file("user_file.py:A", tmp_path)(4).x == 4


def test_two_files_of_one_name_stay_apart_and_hide_no_module(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", "x = 'a'", "json.py")
    write(tmp_path / "b", "x = 'b'", "json.py")
    assert import_from_file("a/json.py:x", tmp_path) == "a"
    assert import_from_file("b/json.py:x", tmp_path) == "b"
    assert hasattr(sys.modules["json"], "loads")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"SyntaxError: .*user_file\.py, line 1"),
        ("x = 1\nimport no_such_module\n", r"ModuleNotFoundError.*user_file\.py, line 2"),
        ("import json\ny = 3\njson.loads('{')\n", r"JSONDecodeError.*user_file\.py, line 3"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n", "SystemExit"),
    ],
)
def test_an_error_on_import_keeps_its_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path, text)
    before = set(sys.modules)
    with pytest.raises(ModelError, match=message):
        import_from_file("user_file.py:f", tmp_path)
    assert not [m for m in set(sys.modules) - before if m.startswith("prune2deploy_user")]


def test_the_room_that_asks_chooses_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        import_from_file("absent.py:f", tmp_path, error=DataError)
