"""What the package never does, read from its sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "prune2deploy"
FILES = sorted(PACKAGE.rglob("*.py"))
UNPICKLERS = ("pickle", "marshal", "shelve")
# The restricted unpickler of torch raises pickle's errors.
MAY_NAME_PICKLE = {"models/checkpoint.py"}


def faults(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that has no place in the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, a.name) for a in node.names if a.name in ("pickle", "marshal")
            )
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal"):
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(node.func)
    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in ("eval", "exec", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"):
        yield node.lineno, name
    if given.get("shell") == "True":
        yield node.lineno, "shell=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield node.lineno, "np.load that may unpickle"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield node.lineno, "torch.load that may unpickle"
    if name.endswith((".extractall", ".extract")) and "extract_" not in name:
        yield node.lineno, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden(path: Path) -> None:
    found = list(faults(path.read_text(encoding="utf-8")))
    if path.relative_to(PACKAGE).as_posix() in MAY_NAME_PICKLE:
        found = [(line, what) for line, what in found if what != "pickle"]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "import os; os.system('x')",
        "import subprocess; subprocess.run('x', shell=True)",
        "import numpy as np; np.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "archive.extractall('x')",
    ],
)
def test_the_rules_see_faults(source: str) -> None:
    assert list(faults(source))
