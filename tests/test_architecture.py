"""Which room of the package may import which: docs/design.md, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prune2deploy"

# Data flows from left to right, and a room imports only rooms to its left.
LINE = (
    "models",
    "data",
    "channels",
    "methods",
    "budget",
    "search",
    "train",
    "export",
    "devices",
    "latency",
    "planning",
    "report",
    "artifact",
)
# These use every room. Nobody else sees a recipe: below them functions take plain values.
ABOVE_ALL = ("pipeline", "sweep", "cli")
# These stand beside the line and import only what is named.
# The recipe's schema holds each method's options.
BESIDE: dict[str, set[str]] = {"recipe": {"methods"}, "doctor": {"probe"}, "probe": set()}
# These rooms of the line use one beside it as well: what the probe is and the names it has.
ALSO: dict[str, set[str]] = {"devices": {"probe"}}
# Everybody may use these.
SHARED = {"errors", "printable", "progress", "yaml_text", "__version__"}
# Runs alone on a device that has no prune2deploy.
ALONE = "probe"


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name below prune2deploy) of every import, also those in functions.

    module: the dotted name of the source itself below prune2deploy.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("prune2deploy."):
                    yield node.lineno, alias.name.removeprefix("prune2deploy.")
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = ["prune2deploy", *module.split(".")][: -node.level]
                origin = ".".join([*parents, origin]).rstrip(".")
            if origin == "prune2deploy":
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif origin.startswith("prune2deploy."):
                below = origin.removeprefix("prune2deploy.")
                yield from ((node.lineno, f"{below}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "prune2deploy":
            # After a plain `import prune2deploy`.
            yield node.lineno, node.attr


def may_import(room: str, name: str) -> bool:
    """Whether a file of this room may import this dotted name below prune2deploy."""
    other = name.partition(".")[0]
    if other == room or other in SHARED or room in ABOVE_ALL:
        return True
    if room in BESIDE:
        return other in BESIDE[room]
    if other in ALSO.get(room, ()):
        return True
    return other in LINE and LINE.index(other) < LINE.index(room)


def violations(path: str, source: str) -> list[str]:
    """Return "file:line imports name" for each import that the order forbids."""
    parts = Path(path).with_suffix("").parts
    module = ".".join(parts)
    found = imported(source, module)
    if parts[0] == ALONE:
        # Packed under another name: only relative imports work there, and only of neighbours.
        absolute = "prune2deploy" in {
            word
            for line in source.splitlines()
            if "import" in line
            for word in line.replace(".", " ").split()
        }
        return [
            f"{path}:{line} imports {name}"
            for line, name in found
            if absolute or not name.startswith("probe.")
        ]
    return [
        f"{path}:{line} imports {name}" for line, name in found if not may_import(parts[0], name)
    ]


def sources() -> list[str]:
    return sorted(
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE
    )


def test_every_folder_is_a_room_with_a_place() -> None:
    folders = {path.split("/")[0] for path in sources()}
    assert folders == {*LINE, *ABOVE_ALL, *BESIDE}


def test_the_files_for_everybody_import_no_room() -> None:
    files = {path.stem: path.read_text() for path in PACKAGE.glob("*.py")}
    files.pop("__init__")  # the public names; it loads them when they are asked for
    assert set(files) == SHARED - {"__version__"}
    for name, source in files.items():
        assert [line for line, other in imported(source, name) if other not in SHARED] == []


def test_a_room_imports_only_rooms_to_its_left() -> None:
    found = [v for path in sources() for v in violations(path, (PACKAGE / path).read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("channels/cut.py", "from prune2deploy.methods import METHODS"),
        ("channels/cut.py", "def f():\n    import prune2deploy.train.loop"),
        ("channels/cut.py", "from ..budget import shares"),
        ("budget/cost.py", "from prune2deploy import plan"),
        ("budget/cost.py", "import prune2deploy\nprune2deploy.plan"),
        ("train/loop.py", "from prune2deploy.recipe import Recipe"),
        ("train/loop.py", "from prune2deploy.pipeline.run import run_recipe"),
        ("recipe/schema.py", "from prune2deploy.channels import Graph"),
        ("recipe/schema.py", "from prune2deploy.models import load_model"),
        ("latency/profile.py", "from prune2deploy.probe.job import ASKS"),
        ("devices/check.py", "from prune2deploy.doctor import FEATURES"),
        ("probe/main.py", "from prune2deploy.errors import DeviceError"),
        ("probe/main.py", "from prune2deploy.probe.job import read_job"),
        ("probe/main.py", "from ..errors import DeviceError"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("channels/cut.py", "from prune2deploy.channels.plan import Plan"),
        ("channels/cut.py", "from prune2deploy import __version__, progress"),
        ("methods/l1.py", "from prune2deploy.channels import Graph"),
        ("data/sources/user.py", "from ...models import explain"),
        ("recipe/pruning.py", "from prune2deploy.methods import METHODS"),
        ("pipeline/run.py", "from prune2deploy.recipe import Recipe"),
        ("cli/app.py", "import torch, numpy"),
        ("devices/check.py", "from prune2deploy.probe import cpu_names"),
        ("probe/main.py", "from .job import read_job"),
    ],
)
def test_a_right_import_is_let_through(path: str, source: str) -> None:
    assert violations(path, source) == []
