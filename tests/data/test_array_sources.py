import numpy as np
import pytest
import torch

from prune2deploy.data import open_data
from prune2deploy.errors import DataError

SHAPE = (3, 4, 5)


@pytest.fixture
def write(tmp_path):
    def save(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (12, *SHAPE), dtype=np.uint8),
            "y_train": np.arange(12) % 3,
            "x_test": rng.integers(0, 256, (6, *SHAPE), dtype=np.uint8),
            "y_test": np.arange(6) % 3,
            **changes,
        }
        path = tmp_path / "set.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return save


def only_batch(data, split="train"):
    (batch,) = data.loader(split, batch_size=1000)
    return batch


def test_digits_are_scaled_and_split():
    data = open_data("digits", input_shape=(1, 8, 8))
    assert data.size("train") + data.size("test") == 1797
    assert data.size("test") == pytest.approx(1797 / 4, abs=5)
    assert data.classes == list("0123456789")
    images, targets = only_batch(data, "test")
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert torch.bincount(targets).min() > 40


def test_digits_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*model\.input to \[1, 8, 8\]"):
        open_data("digits", input_shape=(1, 28, 28))


def test_digits_need_no_root(tmp_path):
    with pytest.raises(DataError, match=r"remove data\.root"):
        open_data("digits", input_shape=(1, 8, 8), root=tmp_path)


def test_npz_gives_its_arrays_scaled(write):
    path = write()
    data = open_data("npz", root=path, input_shape=SHAPE)
    images, targets = only_batch(data)
    expected = np.load(path)["x_train"].astype(np.float32) / 255
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6)
    assert targets.tolist() == [0, 1, 2] * 4
    assert data.classes == ["0", "1", "2"]
    assert data.size("test") == 6


def test_npz_channels_may_come_last(write):
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    path = write(x_test=images, y_test=np.array([0, 1]))
    result, _ = only_batch(open_data("npz", root=path, input_shape=SHAPE), "test")
    assert result[1, 2, 3, 1] * 255 == pytest.approx(images[1, 3, 1, 2])


def test_npz_single_channel_needs_no_axis(write):
    grey = np.zeros((12, 4, 5), dtype=np.uint8)
    data = open_data("npz", root=write(x_train=grey, x_test=grey[:6]), input_shape=(1, 4, 5))
    assert only_batch(data)[0].shape == (12, 1, 4, 5)


def test_npz_floats_and_columns_of_labels(write):
    floats = np.full((12, *SHAPE), -2.5)
    path = write(
        x_train=floats, y_train=(np.arange(12) % 3)[:, None], classes=np.array(list("abc"))
    )
    data = open_data("npz", root=path, input_shape=SHAPE)
    assert float(only_batch(data)[0].mean()) == -2.5
    assert data.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None}, "lacks y_train"),
        ({"x_tset": np.zeros(1)}, "unknown keys x_tset"),
        ({"y_train": np.arange(5)}, r"shape \(5,\).*12 whole numbers"),
        ({"y_train": np.arange(12) / 3}, "whole numbers"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 7])}, r"class numbers \[7\], which y_train lacks"),
        ({"y_test": np.array([0, 1, 2, 0, 1, -1])}, "class number -1"),
        ({"x_train": np.zeros((12, 3, 9, 9), np.uint8)}, r"\(12, 3, 9, 9\).*\(3, 4, 5\)"),
        ({"x_train": np.zeros((12, *SHAPE), np.int32)}, "int32.*uint8"),
        ({"x_train": np.full((12, *SHAPE), np.nan)}, "NaN or inf"),
        ({"classes": np.array(["a"])}, "1 names.*at least 3"),
    ],
)
def test_npz_that_does_not_fit(write, changes, message):
    with pytest.raises(DataError, match=message):
        open_data("npz", root=write(**changes), input_shape=SHAPE)


def test_npz_with_pickled_objects_is_refused(write):
    path = write(classes=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="without pickled objects"):
        open_data("npz", root=path, input_shape=SHAPE)


def test_file_that_is_no_npz(tmp_path):
    path = tmp_path / "set.npz"
    path.write_text("x,y")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        open_data("npz", root=path, input_shape=SHAPE)
    with pytest.raises(DataError, match="is no file"):
        open_data("npz", root=tmp_path, input_shape=SHAPE)


@pytest.mark.parametrize("option", [{"cache": "disk"}, {"resize": 16}])
def test_options_for_files_do_not_fit_arrays(write, option):
    with pytest.raises(DataError, match="lie in memory at their final size"):
        open_data("npz", root=write(), input_shape=SHAPE, **option)
