from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import prune2deploy
from prune2deploy.cli import app

RECIPE = """\
model: {source: digits:convnet, input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 20, lr: 0.1}
prune: {method: l1, budget: {macs: 0.5}}
"""
# What would force colours, or take them away, whatever the output is.
_SETTINGS = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "TTY_COMPATIBLE")


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment without settings about colours, on a terminal that has them."""
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**kept, "TERM": "xterm-256color"}


@pytest.fixture
def call() -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*args: str | Path) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put stand-ins in the place of a room, so that nothing heavy is imported."""

    def put(name: str, **contents: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(contents)
        # What a command takes from a file of the room is the real one.
        module.__path__ = [str(Path(prune2deploy.__file__).parent / name)]
        monkeypatch.setitem(sys.modules, f"prune2deploy.{name}", module)

    return put


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def on_terminal() -> Callable[..., tuple[int, str]]:
    """Run a Python program on a pseudo-terminal; return its exit code and what was shown."""

    def run(program: str, environment: dict[str, str]) -> tuple[int, str]:
        main, side = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment,
            close_fds=True,
        )
        os.close(side)
        shown = b""
        while select.select([main], [], [], 30)[0]:
            try:
                part = os.read(main, 65536)
            except OSError:  # how Linux tells that the other side is closed
                break
            if not part:
                break
            shown += part
        os.close(main)
        return process.wait(30), shown.decode()

    return run
