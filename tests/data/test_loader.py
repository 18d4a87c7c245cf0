import pytest
import torch

from prune2deploy.data import Augment, open_data
from prune2deploy.errors import DataError

SHAPE = (3, 8, 8)


def batches(data, split="train", **options):
    loader = data.loader(split, **{"batch_size": 5, **options})
    result = [(images.clone(), targets.clone()) for images, targets in loader]
    assert len(loader) == len(result)
    return result


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@pytest.fixture(params=[("memory", 0), ("disk", 0), ("disk", 2)], ids=str)
def data(request, image_folder):
    cache, workers = request.param
    return open_data(
        "imagefolder",
        root=image_folder(per_class=9),
        input_shape=SHAPE,
        normalize="imagenet",
        augment=Augment(flip=True, crop_padding=2),
        cache=cache,
        workers=workers,
    )


def test_epochs_repeat_with_their_seed_and_differ_from_each_other(data):
    torch.manual_seed(1)
    first = batches(data, shuffle=True, augment=True, seed=3, epoch=1)
    torch.manual_seed(2)
    assert same(first, batches(data, shuffle=True, augment=True, seed=3, epoch=1))
    assert not same(first, batches(data, shuffle=True, augment=True, seed=3, epoch=2))
    assert not same(first, batches(data, shuffle=True, augment=True, seed=4, epoch=1))


def test_augmentation_differs_between_epochs_and_leaves_evaluation_alone(data):
    plain = batches(data)
    assert same(plain, batches(data))
    augmented = batches(data, augment=True, epoch=0)
    assert not same(augmented, plain)
    assert not same(augmented, batches(data, augment=True, epoch=1))


def test_a_stopped_epoch_goes_on_with_the_same_batches(data):
    whole = batches(data, shuffle=True, augment=True, seed=3)
    assert same(whole[2:], batches(data, shuffle=True, augment=True, seed=3, skip_batches=2))


def test_loading_does_not_move_torchs_own_generator(data):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(data, shuffle=True, augment=True)
    assert torch.equal(torch.rand(3), expected)


def test_memory_and_disk_give_the_same_images(image_folder):
    root = image_folder(size=(12, 9))
    options = {"root": root, "input_shape": SHAPE, "augment": Augment(True, 1), "resize": 8}
    memory = open_data("imagefolder", cache="memory", **options)
    disk = open_data("imagefolder", cache="disk", workers=0, **options)
    for choice in ({}, {"shuffle": True, "augment": True, "seed": 1}):
        assert same(batches(memory, **choice), batches(disk, **choice))


def test_images_are_normalised(image_folder):
    root = image_folder()
    raw = batches(open_data("imagefolder", root=root, input_shape=SHAPE))[0][0]
    data = open_data(
        "imagefolder",
        root=root,
        input_shape=SHAPE,
        normalize={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.2]},
    )
    normalised = batches(data)[0][0]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.2)]):
        torch.testing.assert_close(
            normalised[:, channel], (raw[:, channel] - mean) / std, rtol=1e-5, atol=1e-6
        )
    assert data.mean == [0.1, 0.2, 0.3]


def test_resized_crop_sees_different_parts(image_folder):
    data = open_data(
        "imagefolder",
        root=image_folder(size=(40, 40)),
        input_shape=SHAPE,
        augment=Augment(resized_crop=0.3),
        workers=1,
    )
    first = batches(data, augment=True)
    assert same(first, batches(data, augment=True))
    assert not same(first, batches(data, augment=True, epoch=1))
    assert first[0][0].shape == (5, *SHAPE)


def test_large_images_are_not_kept_in_memory(image_folder):
    root = image_folder(size=(100, 100))
    small = open_data("imagefolder", root=root, input_shape=(3, 96, 96))
    large = open_data("imagefolder", root=root, input_shape=(3, 97, 97))
    assert small._reading.in_memory
    assert not large._reading.in_memory


def test_too_many_small_images_are_not_kept_in_memory(image_folder, monkeypatch):
    monkeypatch.setattr("prune2deploy.data.opening._MEMORY_LIMIT_BYTES", 16 * 3 * 8 * 8 - 1)
    root = image_folder()
    assert not open_data("imagefolder", root=root, input_shape=SHAPE)._reading.in_memory
    monkeypatch.setattr("prune2deploy.data.opening._MEMORY_LIMIT_BYTES", 16 * 3 * 8 * 8)
    assert open_data("imagefolder", root=root, input_shape=SHAPE)._reading.in_memory


def test_opening_decodes_nothing(image_folder, monkeypatch):
    def fail(*args):
        raise AssertionError("an image was opened")

    monkeypatch.setattr("PIL.Image.open", fail)
    data = open_data("imagefolder", root=image_folder(), input_shape=SHAPE)
    assert data.size("train") == 8
    assert data.describe()["images"] == {"train": 8, "test": 8}


def test_describe_is_plain(image_folder):
    root = image_folder()
    facts = open_data("imagefolder", root=root, input_shape=SHAPE, normalize="imagenet").describe()
    assert facts["source"] == "imagefolder"
    assert facts["root"] == str(root)
    assert facts["classes"] == 2
    assert facts["mean"] == [0.485, 0.456, 0.406]
    assert len(facts["fingerprint"].partition(":")[2]) == 64


def test_a_split_that_is_not_there(image_folder):
    data = open_data("imagefolder", root=image_folder(), input_shape=SHAPE)
    with pytest.raises(DataError, match=r"no val set; this data has train, test.*data\.val"):
        data.loader("val", batch_size=4)
    assert data.size("val") == 0


def test_only_training_images_are_augmented(image_folder):
    data = open_data("imagefolder", root=image_folder(), input_shape=SHAPE)
    with pytest.raises(ValueError, match="training images"):
        data.loader("test", batch_size=4, augment=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "imagefolders"}, "Did you mean 'imagefolder'"),
        ({"on_bad_image": "ignore"}, "expected fail or skip"),
        ({"cache": "ram"}, "expected auto, memory or disk"),
        ({"resize": 7}, "resize is 7.*at least 8"),
        ({"augment": Augment(crop_padding=-1)}, "crop_padding -1"),
        ({"augment": Augment(resized_crop=1.5)}, r"resized_crop 1\.5"),
        ({"augment": Augment(resized_crop=0.5), "cache": "memory"}, r"data\.cache: disk"),
        ({"args": {"a": 1}}, r"takes no data\.args"),
    ],
)
def test_options_that_make_no_sense(image_folder, options, message):
    options = {"source": "imagefolder", **options}
    with pytest.raises(DataError, match=message):
        open_data(options.pop("source"), root=image_folder(), input_shape=SHAPE, **options)
