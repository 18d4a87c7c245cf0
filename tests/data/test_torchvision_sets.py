import struct

import numpy as np
import pytest
import torchvision

from prune2deploy.data import open_data
from prune2deploy.data.sources.torchvision_sets import SETS
from prune2deploy.errors import DataError


@pytest.fixture
def mnist(tmp_path):
    """Twelve images in MNIST's own file format."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 8), ("t10k", 4)):
        pixels = np.full((count, 28, 28), 51, dtype=np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 4).astype(np.uint8)
        header = struct.pack(">II", 2049, count)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


def test_data_set_on_disk(mnist):
    data = open_data("torchvision:MNIST", root=mnist, input_shape=(1, 28, 28), val=0.5)
    assert [data.size(name) for name in ("train", "val", "test")] == [4, 4, 4]
    assert data.classes[3] == "3 - three"
    ((images, targets),) = data.loader("test", batch_size=4)
    assert images.shape == (4, 1, 28, 28)
    assert float(images.mean()) == pytest.approx(0.2)
    assert targets.tolist() == [0, 1, 2, 3]


def test_images_take_the_size_and_colours_of_the_model(mnist):
    data = open_data("torchvision:MNIST", root=mnist, input_shape=(3, 32, 32))
    ((images, _),) = data.loader("test", batch_size=4)
    assert images.shape == (4, 3, 32, 32)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"CIFAR10 was not found in .*download=True") as info:
        open_data("torchvision:CIFAR10", root=tmp_path, input_shape=(3, 32, 32))
    assert "torchvision.datasets.CIFAR10(" in str(info.value)


def test_unknown_name_and_missing_root(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'CIFAR10'"):
        open_data("torchvision:CIFAR-10", root=tmp_path, input_shape=(3, 32, 32))
    with pytest.raises(DataError, match=r"needs data\.root"):
        open_data("torchvision:CIFAR10", input_shape=(3, 32, 32))


def test_arguments_the_class_does_not_take(mnist):
    with pytest.raises(DataError, match=r"does not take data\.args"):
        open_data("torchvision:MNIST", root=mnist, input_shape=(1, 28, 28), args={"fold": 1})


def test_every_set_of_the_table_is_torchvisions():
    assert all(hasattr(torchvision.datasets, name) for name in SETS)
    assert len(SETS) >= 15
