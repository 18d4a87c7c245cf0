"""Where problems are said to be, and where relative paths start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.methods import METHODS
from prune2deploy.recipe import load_recipe, parse_recipe
from prune2deploy.yaml_text import MAX_CHARS

Problems = Callable[..., list[str]]


def owners(option: str) -> str:
    """The methods that have an option, as a message lists them."""
    names = sorted(
        name for name, method in METHODS.items() if option in method.options.model_fields
    )
    return ", ".join(names[:-1]) + " and " + names[-1]


def test_all_problems_are_listed_with_file_line_and_key_in_order(problems: Problems) -> None:
    text = """\
model:
  source: digits:convnet
  input: [1, 8, 8]
dat: {source: digits}
data:
  source: digits
  flip: true
  val: 2
prune:
  method: l1
  images: 64
  budget:
    macs: 0.5
    mac: 0.5
finetune:
  lr: fast
gates: {max_drop: 1, max_drop: 2}
"""
    assert problems(text, "seed=x", "nonsense") == [
        "r.yaml:4: dat: unknown key. Did you mean 'data'?",
        "r.yaml:7: data.flip: unknown key here; it belongs at data.augment.flip",
        "r.yaml:8: data.val: should be less than 1, found 2",
        f"r.yaml:11: prune.images: is an option of {owners('images')}, not of l1; remove it",
        "r.yaml:14: prune.budget.mac: unknown key. Did you mean 'macs'?",
        "r.yaml:15: finetune.epochs: missing. Expected: passes over the training images; may be "
        "a fraction.",
        "r.yaml:16: finetune.lr: should be a valid number, found 'fast'",
        "r.yaml:17: gates.max_drop: is written twice, first on line 17; remove one",
        "r.yaml:17: gates.max_drop: unknown key. Did you mean 'max_accuracy_drop'?",
        "--set nonsense: should look like key.subkey=value, for example --set finetune.epochs=5",
        "--set seed: should be a valid integer, found 'x'",
    ]


def test_settings_that_do_not_fit_are_listed_together(problems: Problems) -> None:
    found = problems(
        """\
model:
  source: torchvision:resnet18
  input: [3, 224, 224]
data:
  source: imagefolder
  resize: 200
prune:
  method: network_slimming
  budget: {macs: 0.5, params: 0.5}
finetune: {epochs: 1, lr: 0.1, gamma: 0.5}
"""
    )
    keys = [line.split(": ")[1] for line in found]
    assert keys == [
        "model.checkpoint",
        "data.root",
        "data.resize",
        "prune.train",
        "prune.budget",
        "finetune.gamma",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("image: 3", "unknown key. Did you mean 'images'?"),
        ("options: {images: 3}", "unknown key."),
        ("images: 0", "should be greater than or equal to 1, found 0"),
        ("images: many", "should be a valid integer, found 'many'"),
        ("penalty: 1.0", f"is an option of {owners('penalty')}, not of chip"),
        ("bacth_size: 3", "unknown key. Did you mean 'batch_size'?"),
    ],
)
def test_options_of_the_method_are_checked_where_they_stand(
    good: str, problems: Problems, line: str, expected: str
) -> None:
    text = good.replace("images: 64", line)
    key = line.partition(":")[0]
    (found,) = problems(text)
    assert found.startswith(f"r.yaml:8: prune.{key}: {expected}")


def test_a_problem_below_an_override_is_reported_as_the_override(
    good: str, problems: Problems
) -> None:
    assert problems(good, "finetune={epochs: 1, lr: 2, lrr: 3}") == [
        "--set finetune: finetune.lrr: unknown key. Did you mean 'lr'?"
    ]


def test_a_problem_with_what_stays_in_the_file_keeps_its_line(
    good: str, problems: Problems
) -> None:
    assert problems(good, "prune.method=l1") == [
        f"r.yaml:8: prune.images: is an option of {owners('images')}, not of l1; remove it"
    ]


def test_what_an_override_replaced_is_no_longer_where_it_was(good: str, problems: Problems) -> None:
    assert problems(good, "finetune={epochs: 1, lr: x}", "seed=y", "seed=z") == [
        "--set seed: should be a valid integer, found 'z'",
        "--set finetune: finetune.lr: should be a valid number, found 'x'",
    ]


def test_the_last_override_counts(good: str) -> None:
    recipe = parse_recipe(good, "r.yaml", ["seed=x", "finetune.lr=9", "finetune.lr=1", "seed=3"])
    assert recipe.seed == 3
    assert recipe.finetune is not None
    assert recipe.finetune.lr == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a recipe is a mapping with the keys model, data and prune, found nothing"),
        ("- 1", "found [1]"),
        ("hello", "found 'hello'"),
        ("!x {}", "the YAML tag !x is not allowed"),
        ("a: [", "is not valid YAML"),
        ("{}", "model: missing. Expected: where the trained network comes from."),
        ("model: 1\nprune: 2\ndata: 3", "prune: should be a valid mapping, found 2"),
        ("prune: {method: 3, budget: 4, x: 5}", "prune.method: should be a valid string"),
        ("model: {source: 3, checkpoint: 4}", "model.source: should be a valid string, found 3"),
        ("base_dir: 3", "base_dir"),
    ],
)
def test_what_is_no_recipe_at_all_is_refused(problems: Problems, text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_paths_in_the_file_start_at_it_and_overrides_at_the_current_folder(
    good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    path = write(home / "r.yaml", good + "task: tasks.py:Mine\n")
    write(home / "tasks.py", "")
    write(home / "images/train", "")
    write(here / "w.pt", "")
    write(here / "model.py", "")
    monkeypatch.chdir(here)
    overrides = [
        "model.source=model.py:build",
        "model.checkpoint=w.pt",
        f"data={{source: imagefolder, root: {home}/images, normalize: none}}",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.base_dir == home
    assert recipe.model.source == f"{here}/model.py:build"
    assert recipe.model.checkpoint == here / "w.pt"
    assert recipe.data.root == home / "images"
    assert recipe.task == "tasks.py:Mine"


def test_relative_paths_of_the_file_become_absolute(good: str, tmp_path: Path) -> None:
    text = good.replace("source: digits\n", "source: imagefolder\n  root: images\n")
    write(tmp_path / "images/x", "")
    recipe = load_recipe(write(tmp_path / "r.yaml", text))
    assert recipe.data.root == tmp_path / "images"


def test_the_home_folder_is_understood(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/somebody")
    recipe = parse_recipe(good, "r.yaml", ["model.checkpoint=~/w.pt"])
    assert recipe.model.checkpoint == Path("/home/of/somebody/w.pt")


def test_missing_files_are_named_with_the_line_that_names_them(good: str, tmp_path: Path) -> None:
    text = good.replace("{source: digits:convnet,", "{source: m.py:f, checkpoint: ~none/w.pt,")
    text = text.replace("  source: digits\n", "  source: npz\n  root: x.npz\n")
    path = write(tmp_path / "r.yaml", text + "task: t.py:T\nlr: 3\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        f"{path}:1: model.checkpoint: no such file: {tmp_path}/~none/w.pt",
        f"{path}:1: model.source: no such file: {tmp_path}/m.py",
        f"{path}:4: data.root: no such file or folder: {tmp_path}/x.npz",
        f"{path}:14: task: no such file: {tmp_path}/t.py",
        f"{path}:15: lr: unknown key here; it belongs at pretrain.lr or prune.train.lr or "
        "finetune.lr or export.int8.finetune.lr",
    ]


def image_folder_recipe(good: str, root: Path) -> str:
    return good.replace("source: digits\n", f"source: imagefolder\n  root: {root}\n")


def test_early_stopping_may_use_a_folder_of_validation_images(good: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    path = write(tmp_path / "r.yaml", image_folder_recipe(good, root))
    write(root / "train/x", "")
    override = "finetune.early_stop={patience: 2}"
    with pytest.raises(RecipeError, match=r"--set finetune\.early_stop: needs validation images"):
        load_recipe(path, [override])
    load_recipe(path, [override, "data.val=0.1"])
    write(root / "validation/x", "")
    load_recipe(path, [override])


def test_a_data_root_that_is_a_file_is_left_to_the_data(good: str, tmp_path: Path) -> None:
    root = write(tmp_path / "images.zip", "")
    path = write(tmp_path / "r.yaml", image_folder_recipe(good, root))
    assert load_recipe(path).data.root == root


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: no such recipe"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(RecipeError, match=r"b\.yaml:2: should be text in UTF-8"):
        load_recipe(binary)
    large = write(tmp_path / "large.yaml", "#" * (MAX_CHARS + 1))
    with pytest.raises(RecipeError, match="larger than 256 KiB"):
        load_recipe(large)


def test_a_byte_order_mark_is_no_problem(good: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert load_recipe(path).name == "r"
