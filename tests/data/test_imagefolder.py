import logging

import pytest
import torch

from prune2deploy.data import open_data
from prune2deploy.errors import DataError

SHAPE = (3, 8, 8)


def test_layout_with_a_folder_per_split(image_folder):
    root = image_folder(folders=("train", "valid", "test"), classes=("b", "a"), per_class=3)
    data = open_data("imagefolder", root=root, input_shape=SHAPE)
    assert data.classes == ["a", "b"]
    assert {name: data.size(name) for name in ("train", "val", "test")} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    (_, targets), *_ = data.loader("test", batch_size=6)
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_other_names_of_the_val_folder(image_folder, name):
    root = image_folder(folders=("train", name, "test"))
    assert open_data("imagefolder", root=root, input_shape=SHAPE).size("val") == 8


def test_layout_without_splits_is_split_by_share(image_folder):
    root = image_folder(folders=("",), per_class=10)
    data = open_data("imagefolder", root=root, input_shape=SHAPE, test=0.2, val=0.25)
    assert [data.size(name) for name in ("train", "val", "test")] == [12, 4, 4]
    images = [
        image
        for name in ("train", "val", "test")
        for batch, _ in data.loader(name, batch_size=5)
        for image in batch
    ]
    # Twenty different random images: a sample in two splits would show twice.
    assert len({tuple(image.flatten().tolist()) for image in images}) == 20


def test_images_in_folders_below_the_class_count_too(image_folder):
    root = image_folder()
    (root / "train" / "cat" / "more").mkdir()
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "more" / "0.png")
    assert open_data("imagefolder", root=root, input_shape=SHAPE).size("train") == 8


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist.*root/train/<class>"):
        open_data("imagefolder", root=tmp_path / "nowhere", input_shape=SHAPE)


def test_no_root():
    with pytest.raises(DataError, match=r"needs data\.root"):
        open_data("imagefolder", input_shape=SHAPE)


def test_folder_without_folders(tmp_path):
    with pytest.raises(DataError, match="no folders in it"):
        open_data("imagefolder", root=tmp_path, input_shape=SHAPE)


def test_empty_class_folder_is_named(image_folder):
    root = image_folder()
    (root / "train" / "ape").mkdir()
    (root / "test" / "ape").mkdir()
    with pytest.raises(DataError, match=r"train/ape holds no image.*\.jpg"):
        open_data("imagefolder", root=root, input_shape=SHAPE)


def test_splits_with_different_classes(image_folder):
    root = image_folder(classes=("cat", "dog", "emu"))
    for file in (root / "test" / "dog").iterdir():
        file.unlink()
    (root / "test" / "dog").rmdir()
    with pytest.raises(DataError, match=r"test has 2 classes.*train set has 3.*missing: dog"):
        open_data("imagefolder", root=root, input_shape=SHAPE)


def test_test_folder_without_train_folder(image_folder):
    root = image_folder(folders=("test", "val"))
    with pytest.raises(DataError, match="no folder train"):
        open_data("imagefolder", root=root, input_shape=SHAPE)


def test_folders_beside_the_splits_are_named_in_the_log(image_folder, caplog):
    root = image_folder(folders=("train", "test", "spare"))
    with caplog.at_level(logging.WARNING):
        data = open_data("imagefolder", root=root, input_shape=SHAPE)
    assert data.classes == ["cat", "dog"]
    assert "ignored beside those of the splits: spare" in caplog.text


def test_two_folders_for_one_split(image_folder):
    root = image_folder(folders=("train", "val", "valid", "test"))
    with pytest.raises(DataError, match="both val and valid"):
        open_data("imagefolder", root=root, input_shape=SHAPE)


def test_no_test_set_and_no_share(image_folder):
    root = image_folder(folders=("train", "val"))
    with pytest.raises(DataError, match=r"no test set; found only train, val.*data\.test"):
        open_data("imagefolder", root=root, input_shape=SHAPE)


def test_share_for_a_set_that_exists(image_folder):
    with pytest.raises(DataError, match=r"test set of its own \(8 images\)"):
        open_data("imagefolder", root=image_folder(), input_shape=SHAPE, test=0.5)


def test_one_class_is_no_classification(image_folder):
    with pytest.raises(DataError, match=r"1 class folder\(s\): cat.*at least 2"):
        open_data("imagefolder", root=image_folder(classes=("cat",)), input_shape=SHAPE)


def test_files_that_are_no_images_are_counted_in_the_log(image_folder, caplog):
    root = image_folder()
    (root / "train" / "cat" / "notes.txt").write_text("two cats")
    with caplog.at_level(logging.WARNING):
        data = open_data("imagefolder", root=root, input_shape=SHAPE)
    assert "1 file(s) ignored" in caplog.text
    assert data.size("train") == 8


@pytest.fixture
def folder_with_a_bad_image(image_folder):
    root = image_folder(suffix="jpg", size=(40, 40))
    whole = root / "train" / "dog" / "2.jpg"
    whole.write_bytes(whole.read_bytes()[:300])
    return root


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("disk", 0), ("disk", 2)])
def test_corrupt_image_is_named(folder_with_a_bad_image, cache, workers):
    data = open_data(
        "imagefolder",
        root=folder_with_a_bad_image,
        input_shape=SHAPE,
        cache=cache,
        workers=workers,
    )
    with pytest.raises(DataError, match=r"dog/2\.jpg cannot be read.*on_bad_image to skip") as info:
        list(data.loader("train", batch_size=8))
    assert "Traceback" not in str(info.value)


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("disk", 2)])
def test_corrupt_image_can_be_skipped(folder_with_a_bad_image, cache, workers, caplog):
    data = open_data(
        "imagefolder",
        root=folder_with_a_bad_image,
        input_shape=SHAPE,
        cache=cache,
        workers=workers,
        on_bad_image="skip",
    )
    with caplog.at_level(logging.WARNING):
        targets = torch.cat([t for _, t in data.loader("train", batch_size=3)])
    assert targets.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert "Left out 1 unreadable image(s)" in caplog.text
    assert "2.jpg" in caplog.text


def test_skipped_images_do_not_count_when_they_are_in_memory(folder_with_a_bad_image):
    data = open_data(
        "imagefolder", root=folder_with_a_bad_image, input_shape=SHAPE, on_bad_image="skip"
    )
    assert data.size("train") == 7


def test_nothing_left_after_skipping(image_folder):
    root = image_folder()
    for file in root.glob("train/*/*.png"):
        file.write_bytes(b"no image")
    data = open_data("imagefolder", root=root, input_shape=SHAPE, on_bad_image="skip")
    with pytest.raises(DataError, match="all 8 images are unreadable"):
        data.size("train")


def test_the_fingerprint_follows_the_files(image_folder):
    root = image_folder()
    before = open_data("imagefolder", root=root, input_shape=SHAPE).describe()["fingerprint"]
    again = open_data("imagefolder", root=root, input_shape=SHAPE).describe()["fingerprint"]
    assert again == before
    (root / "test" / "cat" / "3.png").rename(root / "test" / "cat" / "4.png")
    assert open_data("imagefolder", root=root, input_shape=SHAPE).describe()["fingerprint"] != (
        before
    )
