"""Every recipe in recipes/ is read with the values that its first lines ask for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.recipe import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def test_all_of_them_were_found() -> None:
    assert {path.stem for path in RECIPES} >= {
        "quickstart",
        "cifar10-resnet56",
        "cifar10-resnet20",
        "imagefolder-resnet18",
        "imagefolder-mobilenet_v2",
        "own-model",
    }


def asked_for(path: Path, folder: Path) -> list[str]:
    """Return an override for each `--set KEY=PATH` in the comments, with a file that exists."""
    keys = re.findall(r"--set ([\w.]+)=PATH", path.read_text())
    for key in keys:
        (folder / key).touch()
    return [f"{key}={folder / key}" for key in keys]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_can_be_read(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, asked_for(path, tmp_path))
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_only_the_user_knows_is_asked_for_by_its_key(path: Path, tmp_path: Path) -> None:
    keys = [override.partition("=")[0] for override in asked_for(path, tmp_path)]
    if not keys:
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for key in keys:
        assert f"--set {key}=PATH" in str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_command_in_its_comment_names_the_file(path: Path) -> None:
    assert f"prune2deploy run recipes/{path.relative_to(FOLDER)}" in path.read_text()
