"""A sweep's file: its combinations, their names, and its mistakes, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.recipe import load_sweep
from prune2deploy.recipe.combining import combine, names_of

RECIPE = """\
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 1, lr: 0.1, precision: fp32}
prune: {method: l1, budget: {macs: 0.5}}
profile: {min_time_s: 0.05, retries: 0}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(RECIPE)
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_a_recipe(tmp_path: Path) -> None:
    text = (
        "recipe: base.yaml\n"
        "over:\n"
        "  prune.method: [l1, fpgm]\n"
        "  prune.budget: [{macs: 0.5}, {params: 0.3}]\n"
        "also:\n"
        "- {prune.method: chip, seed: 7}\n"
    )
    sweep = load_sweep(written(tmp_path, text))
    found = [
        (one.recipe.prune.method, one.recipe.prune.budget.asked()) for one in sweep.combinations
    ]
    assert found == [
        ("l1", {"macs": 0.5}),
        ("l1", {"params": 0.3}),
        ("fpgm", {"macs": 0.5}),
        ("fpgm", {"params": 0.3}),
        ("chip", {"macs": 0.5}),
    ]
    assert sweep.combinations[4].recipe.seed == 7
    names = [one.name for one in sweep.combinations]
    assert names == ["l1-macs0.5", "l1-params0.3", "fpgm-macs0.5", "fpgm-params0.3", "chip-seed7"]
    assert [one.recipe.name for one in sweep.combinations] == names


def test_more_values_leave_the_earlier_names(tmp_path: Path) -> None:
    few = names_of([values for values, _ in combine({"seed": [0, 1]}, ()).combinations])
    more = names_of([values for values, _ in combine({"seed": [0, 1, 2]}, ()).combinations])
    assert more[:2] == few


def test_names_differ_whatever_the_values_are() -> None:
    values = [{"a": "x" * 500}, {"a": "x" * 501}, {"a": "X/y"}, {"a": "x y"}, {"a": "x-y"}]
    names = names_of(values)
    assert len({name.lower() for name in names}) == 5
    assert all(len(name) <= 100 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("over: {seed: [1]}\n", "recipe"),
        ("recipe: none.yaml\nover: {seed: [1]}\n", "none.yaml"),
        ("recipe: base.yaml\nover: {seed: 1}\n", "sweep.yaml:2"),
        ("recipe: base.yaml\nover:\n  prune.metod: [l1]\n", "sweep.yaml:3"),
        ("recipe: base.yaml\nover:\n  prune.method: [l1, l9]\n", "sweep.yaml:3"),
        ("recipe: base.yaml\nover: {seed: [1]}\nparalel: 2\n", "sweep.yaml:3"),
        ("recipe: base.yaml\n", "over"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_sweep(written(tmp_path, text))
    assert message in str(caught.value)
