from __future__ import annotations

import errno
from pathlib import Path

import pytest
from PIL import Image

from prune2deploy.errors import DataError, RecipeError
from prune2deploy.recipe import Recipe, load_recipe
from prune2deploy.recipe.starter import starter_recipe, survey_folder, write_recipe


def make_images(
    root: Path,
    splits: tuple[str, ...] = ("train", "test"),
    size: tuple[int, int] = (40, 30),
    classes: tuple[str, ...] = ("cat", "dog"),
    mode: str = "RGB",
) -> Path:
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(3):
                Image.new(mode, size).save(folder / f"{number}.png")
    return root


def starter(path: Path, model: str, root: Path, checkpoint: Path | None = None) -> Recipe:
    """Write a starter recipe and load it, as a user would."""
    path.write_text(starter_recipe(model, survey_folder(root), path, checkpoint))
    return load_recipe(path)


def test_a_folder_is_surveyed(tmp_path: Path) -> None:
    root = make_images(tmp_path, ("training", "Val", "test"))
    Image.new("RGB", (50, 30)).save(root / "training/cat/large.jpg")
    (root / "training/cat/notes.txt").write_text("")
    (root / "training/cat/broken.png").write_bytes(b"no image")
    (root / "training/.cache").mkdir()
    survey = survey_folder(root)
    assert survey.images == {"train": 8, "val": 6, "test": 6}
    assert survey.classes == ("cat", "dog")
    assert (survey.width, survey.height, survey.same_size) == (40, 30, False)
    assert not survey.grey


@pytest.mark.parametrize("model", ["torchvision:resnet18", "cifar:resnet20", "timm:resnet18"])
@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
@pytest.mark.parametrize("size", [(32, 32), (40, 30), (300, 200)])
def test_what_it_writes_is_a_good_recipe(
    tmp_path: Path, model: str, splits: tuple[str, ...], size: tuple[int, int]
) -> None:
    root = make_images(tmp_path / "images", splits, size)
    recipe = starter(tmp_path / "r.yaml", model, root)
    assert recipe.data.root == root
    assert (recipe.data.test is None) == ("test" in splits)
    assert recipe.pretrain is not None


def test_small_images_of_one_size_set_the_input(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", size=(40, 30))
    assert starter(tmp_path / "r.yaml", "torchvision:resnet18", root).model.input == (3, 30, 40)


def test_large_images_are_brought_to_the_usual_input(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", size=(300, 200))
    recipe = starter(tmp_path / "r.yaml", "torchvision:resnet18", root)
    assert recipe.model.input == (3, 224, 224)
    assert recipe.data.resize == 256


def test_a_checkpoint_takes_the_place_of_training_first(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    checkpoint = tmp_path / "my weights: best.pt"
    checkpoint.touch()
    recipe = starter(tmp_path / "r.yaml", "cifar:resnet20", root, checkpoint)
    assert recipe.model.checkpoint == checkpoint
    assert recipe.pretrain is None


def test_own_code_may_load_its_weights_itself_and_take_grey_images(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", mode="L")
    model = tmp_path / "code/net.py"
    model.parent.mkdir()
    model.touch()
    recipe = starter(tmp_path / "r.yaml", f"{model}:build", root)
    assert recipe.pretrain is None
    assert recipe.model.input == (1, 30, 40)


def test_relative_paths_are_written_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("images"))
    Path("net.py").touch()
    Path("recipes").mkdir()
    path = Path("recipes/r.yaml")
    path.write_text(starter_recipe("net.py:build", survey_folder(Path("images")), path))
    assert "root: ../images\n" in path.read_text()
    assert "source: ../net.py:build\n" in path.read_text()
    load_recipe(path)


@pytest.mark.parametrize(
    "name", ["a b", "x: y", "#1", "[1]", "true", "ä", "-", "it's", 'q"q', "~a"]
)
def test_odd_names_survive(tmp_path: Path, name: str) -> None:
    root = make_images(tmp_path / name, classes=(name, "other"))
    assert starter(tmp_path / "r.yaml", "cifar:resnet20", root).data.root == root


def test_a_class_with_a_line_break_stays_a_comment(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", classes=("a\nseed: 5", "b"))
    assert starter(tmp_path / "r.yaml", "cifar:resnet20", root).seed == 0


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        survey_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        survey_folder(tmp_path / "file")
    with pytest.raises(DataError, match="0 class folders"):
        survey_folder(tmp_path)
    make_images(tmp_path / "only", ("test",))
    with pytest.raises(DataError, match="no folder train"):
        survey_folder(tmp_path / "only")
    (tmp_path / "empty/train/a").mkdir(parents=True)
    (tmp_path / "empty/train/b").mkdir(parents=True)
    with pytest.raises(DataError, match="no image that can be read"):
        survey_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("model", "words"),
    [("resnet18", "is not a model source"), ("none.py:build", "No such file: none.py")],
)
def test_a_model_that_cannot_be_is_refused(tmp_path: Path, model: str, words: str) -> None:
    survey = survey_folder(make_images(tmp_path / "images"))
    with pytest.raises(RecipeError, match=words):
        starter_recipe(model, survey, tmp_path / "r.yaml")


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    survey = survey_folder(make_images(tmp_path / "images"))
    with pytest.raises(RecipeError, match="No such file"):
        starter_recipe("cifar:resnet20", survey, tmp_path / "r.yaml", tmp_path / "w.pt")


def test_a_recipe_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("precious")

    def full(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_recipe(path, "new", replace=True)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be written"):
        write_recipe(tmp_path, "new", replace=True)
