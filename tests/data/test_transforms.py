import pytest
import torch
from PIL import Image

from prune2deploy.data.transforms import (
    crop_flip,
    normalization,
    random_resized_crop,
    to_input,
    to_model_input,
)
from prune2deploy.errors import DataError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(image, padding):
    """All crops of an image (height, width, channels) and their mirror images, one by one."""
    height, width, channels = image.shape
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, channels, dtype=image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    crops = [
        padded[y : y + height, x : x + width]
        for y in range(2 * padding + 1)
        for x in range(2 * padding + 1)
    ]
    return crops, [crop.flip(1) for crop in crops]


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_gives_windows_of_the_padded_image(channels):
    image = torch.arange(1, 5 * 4 * channels + 1, dtype=torch.uint8).view(5, 4, channels)
    batch = image.expand(200, -1, -1, -1)
    moved = crop_flip(batch, 2, True, generator())
    crops, mirrored = windows(image, 2)
    seen = [[torch.equal(one, window) for window in crops + mirrored] for one in moved]
    assert all(sum(hits) == 1 for hits in seen)
    # All 25 places, and both directions, turn up among 200 draws.
    assert len({hits.index(True) % 25 for hits in seen}) == 25
    flips = sum(hits.index(True) >= 25 for hits in seen)
    assert 70 < flips < 130


def test_crop_without_flip_never_mirrors():
    image = torch.arange(1, 13, dtype=torch.uint8).view(3, 4, 1)
    moved = crop_flip(image.expand(50, -1, -1, -1), 1, False, generator())
    crops, _ = windows(image, 1)
    assert all(any(torch.equal(one, window) for window in crops) for one in moved)


def test_crop_flip_repeats_with_its_generator_and_leaves_the_input_alone():
    batch = torch.rand(6, 4, 4, 3)
    before = batch.clone()
    first = crop_flip(batch, 1, True, generator(7))
    assert torch.equal(crop_flip(batch, 1, True, generator(7)), first)
    assert not torch.equal(crop_flip(batch, 1, True, generator(8)), first)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_are_scaled_and_normalised_per_channel(channels_last):
    images = torch.tensor([[[[255, 51]]]], dtype=torch.uint8)  # one pixel, two channels
    statistics = ([0.5, 0.1], [0.25, 0.2])
    result = to_model_input(images, statistics, channels_last)
    # (1 - 0.5) / 0.25 = 2 and (0.2 - 0.1) / 0.2 = 0.5
    torch.testing.assert_close(result, torch.tensor([2.0, 0.5]).view(1, 2, 1, 1))
    assert result.dtype == torch.float32


def test_memory_format_is_the_one_asked_for():
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    assert to_model_input(images, None, False).is_contiguous()
    result = to_model_input(images, None, True)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.shape == (2, 3, 4, 5)


def test_floats_are_taken_as_they_are():
    images = torch.tensor([0.25, 3.0]).view(1, 1, 2, 1)
    assert to_model_input(images, None, False).flatten().tolist() == [0.25, 3.0]
    assert images.flatten().tolist() == [0.25, 3.0]


def test_known_statistics_and_given_ones():
    mean, std = normalization("imagenet", 3)
    assert mean == [0.485, 0.456, 0.406]
    assert std == [0.229, 0.224, 0.225]
    assert normalization({"mean": (0.5,), "std": (0.2,)}, 1) == ([0.5], [0.2])
    assert normalization("none", 3) is None


@pytest.mark.parametrize(
    ("spec", "channels", "message"),
    [
        ("imagnet", 3, "Did you mean 'imagenet'"),
        ("imagenet", 1, r"1 channel\(s\)"),
        ({"mean": [0.5], "std": [0.0]}, 1, "std above 0"),
        ({"mean": [0.5]}, 1, "exactly mean and std"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(spec, channels, message):
    with pytest.raises(DataError, match=message):
        normalization(spec, channels)


def test_image_of_the_input_size_is_not_touched():
    image = Image.new("RGB", (6, 4))
    image.putdata([(i, 2 * i, 3 * i) for i in range(24)])
    tensor = to_input(image, (3, 4, 6), None)
    assert tensor.dtype == torch.uint8
    assert tensor[:, 1, 2].tolist() == [8, 16, 24]


def test_resize_then_centre_crop_keeps_the_middle():
    # Left third black, middle white, right third black: 30 wide, 10 high.
    image = Image.new("L", (30, 10))
    image.paste(255, (10, 0, 20, 10))
    assert to_input(image, (1, 10, 10), None).min() == 255
    # Resized to 15 high and 45 wide first, the centre 10x10 is white as well.
    assert to_input(image, (1, 10, 10), 15).min() == 255


def test_larger_image_just_covers_the_input():
    # 40 x 20 with one white column at each end; scaled by 1/2 the ends are cut away.
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 5, 20))
    assert to_input(image, (1, 10, 10), None).max() == 0
    assert to_input(image, (1, 10, 20), None)[0, :, 0].min() > 200


def test_grey_and_colour_are_converted():
    assert to_input(Image.new("L", (4, 4), 7), (3, 4, 4), None).tolist()[2][0][0] == 7
    assert to_input(Image.new("RGBA", (4, 4)), (1, 4, 4), None).shape == (1, 4, 4)


def test_two_channels_cannot_come_from_image_files():
    with pytest.raises(DataError, match=r"2 channels.*1 \(grey\) or 3"):
        to_input(Image.new("L", (4, 4)), (2, 4, 4), None)


def test_tensor_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"\(3, 5, 4\).*\(3, 4, 4\)"):
        to_input(torch.zeros(3, 5, 4), (3, 4, 4), None)


def test_random_resized_crop_shows_a_part_of_the_image():
    gradient = Image.linear_gradient("L")  # 256 x 256, black on top, white at the bottom
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crops = [random_resized_crop(gradient, (1, 16, 16), 0.2).float() for _ in range(20)]
    spans = [float(crop.max() - crop.min()) for crop in crops]
    assert all(crop.shape == (1, 16, 16) for crop in crops)
    assert min(spans) < 150 < max(spans)
