"""`inspect` from the shell to the file, on a small network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from typer.testing import Result

Room = Callable[..., None]

MAIN = "from prune2deploy.cli import main; main()"
MODEL = """\
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.inner(x)).mean((2, 3)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


def inspect(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "inspect", "net.py:Net", "--input", "3,8,8", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )


def test_inspect_in_a_pipe_prints_the_groups_and_draws_the_picture(folder: Path) -> None:
    done = inspect(folder, "--picture", "net.svg")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "16 of 20, in 1 group" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "■" in line)
    assert row.split()[:4] == ["■", "1", "stem", "8"]
    assert row.rstrip().endswith("inner, read by 2 layers")
    assert done.stdout.endswith("Wrote net.svg\n")
    root = Xml.parse(folder / "net.svg").getroot()
    layers = [g.get("data-layer") for g in root.iter() if g.get("class") == "layer"]
    assert layers == ["stem", "inner", "head"]


def test_another_kind_of_picture_is_wrong_usage_before_anything_is_loaded(folder: Path) -> None:
    done = inspect(folder, "--picture", "net.png")
    assert done.returncode == 2
    assert "'net.png' should end in .svg" in " ".join(done.stderr.replace("│", " ").split())
    assert "Loading" not in done.stderr
    assert not (folder / "net.png").exists()


def test_a_picture_that_cannot_be_written_is_one_message(
    folder: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = call("inspect", "net.py:Net", "--input", "3,8,8", "--picture", "net.py/net.svg")
    assert done.exit_code == 1
    assert "16 of 20" in done.stdout
    assert "Wrote" not in done.stdout
    assert done.stderr.count("error: ") == 1
    assert "net.py/net.svg" in done.stderr
    assert "cannot be written" in done.stderr


def test_all_is_passed_on(folder: Path, call: Callable[..., Result], room: Room) -> None:
    room("pipeline", inspect_model=lambda *_, **__: "the graph")
    room("report", groups_table=lambda graph, every: f"{graph}, every: {every}")
    assert call("inspect", "net.py:Net", "--all").stdout == "the graph, every: True\n"
