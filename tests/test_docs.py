"""What the documents show exists, runs, and leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn

import prune2deploy as p2d
from prune2deploy.channels.rules import RULES
from prune2deploy.cli import app
from prune2deploy.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
NOT_OURS = {"build", "dist", "runs", "__pycache__"}
GENERATED = re.compile(r"\.(venv|git|\w+_cache|hypothesis)|.*\.egg-info")


def _files(folder: Path) -> list[Path]:
    """All files that belong to the project: no environment, no caches, no results of runs."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or GENERATED.fullmatch(path.name):
            continue
        found += _files(path) if path.is_dir() else [path]
    return found


FILES = _files(ROOT)
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)  # typer's own copy of click has no types to name
    return dict(group.commands)


def _shown_commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, further words) of every `prune2deploy COMMAND …` at a line's start or in quotes."""
    lines = re.findall(r"(?:^|`|^# +)prune2deploy ([a-z][\w-]*)([^`#\n]*)", text, flags=re.M)
    return [(name, shlex.split(rest.rstrip("\\"))) for name, rest in lines]


def test_readme_shows_every_command() -> None:
    shown = {name for name, _ in _shown_commands((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert shown == set(_commands())


@pytest.mark.parametrize("path", [*DOCUMENTS, *ROOT.glob("recipes/**/*.yaml")], ids=_name)
def test_commands_shown_exist_with_their_options(path: Path) -> None:
    commands = _commands()
    for name, words in _shown_commands(path.read_text(encoding="utf-8")):
        assert name in commands
        command = commands[name]
        if hasattr(command, "commands"):  # a group: the next word is a command of it
            command = command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_make_targets_shown_exist(path: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    shown = re.findall(r"(?:^|`)make (\w+)", path.read_text(encoding="utf-8"), flags=re.M)
    assert set(shown) <= set(targets)


def _anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), target


def test_the_recipe_in_the_readme_is_valid() -> None:
    (text,) = _blocks("README.md", "yaml")
    recipe = parse_recipe(text, ROOT / "recipe.yaml")
    assert recipe.model.source == "torchvision:resnet18"


def test_the_python_in_the_readme_runs() -> None:
    (code,) = _blocks("README.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    shown = set(re.findall(r"p2d\.(\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown <= set(p2d.__all__)
    assert {"graph", "plan", "small", "zeros", "folded"} <= set(names)


def test_the_method_of_the_guide_works() -> None:
    (code,) = _blocks("docs/guides/add-a-method.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    graph = names["graph"]
    kept = graph.cost.macs(graph.counts(names["plan"])) / graph.cost.macs(graph.full)
    assert kept == pytest.approx(0.5, rel=0.05)


def test_the_rule_in_the_design_works(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name of its own: an operator belongs to the process, and examples/own_rule has that one.
    @torch.library.custom_op("p2d_docs::blur", mutates_args=())
    def blur(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 3)

    @blur.register_fake
    def _(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], x.shape[2] // 3, x.shape[3] // 3)

    class Blurred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.last = nn.Conv2d(8, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.last(blur(self.first(x)))
            return scores

    model, images = Blurred(), torch.randn(1, 3, 8, 8)
    assert p2d.trace(model, images).unknown_ops == {"p2d_docs.blur": 1}

    (code,) = _blocks("docs/design.md", "python")
    assert '@rule("antialias.blur")' in code
    code = code.replace("antialias.blur", "p2d_docs.blur")
    monkeypatch.setitem(RULES, "p2d_docs.blur", RULES["aten.cat"])  # put back what is replaced
    exec(f"from __future__ import annotations\nfrom prune2deploy.channels.rules import *\n{code}")
    graph = p2d.trace(model, images)
    assert [(group.name, group.size) for group in graph.groups] == [("first", 8)]
    plan = p2d.plan(graph, budget={"channels": 0.5}, round_to=1)
    torch.testing.assert_close(p2d.cut(model, plan)(images), p2d.mask(model, plan)(images))


def test_no_file_speaks_of_one_machine_or_one_index() -> None:
    # Put together here, so that this file does not hold them itself.
    folders = ["/".join(["", name, ""]) for name in ("work", "root")]
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"))]
    hosts += [".".join(["download", "pytorch", "org"]), ".".join(["npmjs", "org"])]
    for path in FILES:
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert [word for word in [*folders, *hosts] if word in text] == [], _name(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_no_document_waits_for_its_figures(path: Path) -> None:
    assert re.findall(r"\b[A-Z0-9_]+_HERE\b", path.read_text(encoding="utf-8")) == []
