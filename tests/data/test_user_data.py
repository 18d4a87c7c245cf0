import pytest
import torch

from prune2deploy.data import Augment, open_data
from prune2deploy.errors import DataError

SHAPE = (3, 6, 6)

CODE = """
import torch
from torch.utils.data import TensorDataset

def masks(count=10):
    images = torch.linspace(0, 1, count)[:, None, None, None].expand(count, 3, 6, 6)
    masks = torch.arange(count)[:, None, None].expand(count, 6, 6)
    return {"train": TensorDataset(images, masks), "test": TensorDataset(images[:4], masks[:4])}

def bytes_and_numbers():
    images = torch.full((10, 3, 6, 6), 255, dtype=torch.uint8)
    labels = [0, 1] * 5
    return {"train": list(zip(images, labels)), "classes": ["no", "yes"]}

def boxes():
    image = torch.zeros(3, 6, 6)
    samples = [(image, {"boxes": torch.zeros(n, 4)}) for n in range(1, 6)]
    return {"train": samples, "test": samples[:2]}

def wrong_size():
    samples = [(torch.zeros(3, 7, 6), 0)] * 4
    return {"train": samples, "test": samples}

def a_list():
    return [1]

def misspelt():
    return {"trian": []}

def extra():
    return {"train": [1], "tset": [1]}

def empty():
    return {"train": []}

def not_a_data_set():
    return {"train": iter([])}

def fails():
    return {"train": 1 / 0}
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)

    def open_function(name, **options):
        return open_data(f"mine.py:{name}", base_dir=tmp_path, input_shape=SHAPE, **options)

    return open_function


def test_targets_may_be_tensors(load):
    data = load("masks", args={"count": 8})
    ((images, targets),) = data.loader("train", batch_size=8)
    assert data.classes is None
    assert targets.shape == (8, 6, 6)
    assert targets[:, 0, 0].tolist() == list(range(8))
    torch.testing.assert_close(images[:, 0, 0, 0], torch.linspace(0, 1, 8))


def test_order_is_shuffled_and_repeats(load):
    data = load("masks")
    order = [t[:, 0, 0].tolist() for _, t in data.loader("train", batch_size=4, shuffle=True)]
    again = [t[:, 0, 0].tolist() for _, t in data.loader("train", batch_size=4, shuffle=True)]
    assert order == again
    assert [index for batch in order for index in batch] != list(range(10))


def test_bytes_are_scaled_and_a_test_set_is_split_off(load):
    data = load("bytes_and_numbers", test=0.3, augment=Augment(flip=True))
    assert data.classes == ["no", "yes"]
    assert [data.size("train"), data.size("test")] == [7, 3]
    for images, targets in data.loader("train", batch_size=7, augment=True):
        assert float(images.min()) == 1.0
        assert targets.dtype == torch.int64


def test_dictionaries_stay_a_list_with_one_per_image(load):
    ((_, targets),) = load("boxes").loader("train", batch_size=5)
    assert [len(target["boxes"]) for target in targets] == [1, 2, 3, 4, 5]


def test_worker_processes_give_the_same_batches(load):
    here = [t.tolist() for _, t in load("masks", workers=0).loader("train", batch_size=4)]
    there = [t.tolist() for _, t in load("masks", workers=2).loader("train", batch_size=4)]
    assert here == there


@pytest.mark.parametrize("workers", [0, 1])
def test_image_of_another_size(load, workers):
    data = load("wrong_size", workers=workers)
    with pytest.raises(DataError, match=r"\(3, 7, 6\).*\(3, 6, 6\)") as info:
        list(data.loader("train", batch_size=2))
    assert "Traceback" not in str(info.value)


def test_augmentation_must_not_part_images_from_masks(load):
    with pytest.raises(DataError, match="Augment inside your data set"):
        load("masks", augment=Augment(crop_padding=2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_list", "returned list; expected a dictionary"),
        ("misspelt", r"returned the keys \['trian'\]"),
        ("extra", r"returned the keys \['train', 'tset'\]"),
        ("empty", "empty data set as 'train'"),
        ("not_a_data_set", "list_iterator as 'train'.*map-style"),
        ("fails", r"ZeroDivisionError.*mine\.py, line"),
        ("mask", "does not define 'mask'"),
    ],
)
def test_function_that_returns_something_else(load, name, message):
    with pytest.raises(DataError, match=message):
        load(name)


def test_arguments_the_function_does_not_take(load):
    with pytest.raises(DataError, match=r"TypeError.*number"):
        load("masks", args={"number": 3})
