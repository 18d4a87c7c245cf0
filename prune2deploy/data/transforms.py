"""From an image to what the model sees.

Sizes are changed image by image (PIL); random crops and flips, scaling and
normalisation work on whole batches, kept as (n, height, width, channels) so
that moving a pixel moves neighbouring bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from prune2deploy.errors import DataError, nearest_name_hint

_KNOWN_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def normalization(
    spec: str | Mapping[str, Sequence[float]], channels: int
) -> tuple[list[float], list[float]] | None:
    """Return mean and deviation per channel, in units of images scaled to 0..1.

    Args:
        spec: "none", "imagenet", "cifar10", or {"mean": [...], "std": [...]}.
        channels: of the model's input.

    Raises:
        DataError: an unknown name, or not one positive deviation per channel.
    """
    if spec == "none":
        return None
    if isinstance(spec, str):
        if spec not in _KNOWN_STATISTICS:
            raise DataError(
                f"data.normalize '{spec}' does not exist. "
                f"{nearest_name_hint(spec, [*_KNOWN_STATISTICS, 'none'])}"
            )
        mean, std = (list(values) for values in _KNOWN_STATISTICS[spec])
    elif set(spec) == {"mean", "std"}:
        mean, std = list(spec["mean"]), list(spec["std"])
    else:
        raise DataError(
            f"data.normalize has the keys {sorted(spec)}; expected exactly mean and std, "
            "each with one number per channel."
        )
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise DataError(
            f"data.normalize gives mean {mean} and std {std}; the model's input has {channels} "
            "channel(s), so expected as many numbers in each, and std above 0. "
            "Write {mean: [...], std: [...]} yourself, or 'none'."
        )
    return mean, std


def to_input(image: Any, input_shape: tuple[int, int, int], resize: int | None) -> Tensor:
    """Return an image at the model's input size, without any randomness.

    Args:
        image: PIL image of any size and mode, or a tensor of the input shape.
        input_shape: (channels, height, width), channels 1 or 3.
        resize: length of the shorter side before the centre crop. None: an image
            of another size is scaled until it just covers the input.

    Returns:
        uint8, (channels, height, width); a tensor is returned as it is.

    Raises:
        DataError: a tensor of another shape.
    """
    if isinstance(image, Tensor):
        if tuple(image.shape) != input_shape:
            raise DataError(
                f"The data set gave an image of shape {tuple(image.shape)}; the model's input is "
                f"{input_shape}. Change model.input, or resize inside the data set."
            )
        return image
    channels, height, width = input_shape
    image = image.convert(_mode(channels))
    if resize is not None:
        image = _scaled(image, resize / min(image.size))
    elif image.size != (width, height):
        image = _scaled(image, max(width / image.width, height / image.height))
    if image.size != (width, height):
        image = v2.functional.center_crop(image, [height, width])
    return _as_tensor(image)


def random_resized_crop(
    image: Any, input_shape: tuple[int, int, int], smallest_share: float
) -> Tensor:
    """Return a random part of the image at the model's input size; uses torch's own generator."""
    channels, height, width = input_shape
    crop = v2.RandomResizedCrop((height, width), scale=(smallest_share, 1.0), antialias=True)
    return _as_tensor(crop(image if isinstance(image, Tensor) else image.convert(_mode(channels))))


def _as_tensor(image: Any) -> Tensor:
    tensor: Tensor = image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)
    return tensor


def _mode(channels: int) -> str:
    if channels not in (1, 3):
        raise DataError(
            f"The model's input has {channels} channels; image files give 1 (grey) or 3 (colour). "
            "Change model.input, or use source npz or file.py:function."
        )
    return "L" if channels == 1 else "RGB"


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def crop_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to `padding` pixels each way, and mirror half of them.

    Args:
        images: (n, height, width, channels), any dtype; not modified.
        padding: black pixels that come in from outside.
        flip: whether to mirror left and right with probability one half.
        generator: the only source of randomness.

    Returns:
        Same shape and dtype.
    """
    n, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    columns = torch.arange(width).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = torch.arange(height) + shifts[0]
    columns = columns + shifts[1]
    # One gather of whole pixels: three times as fast as slicing image by image.
    row_starts = (torch.arange(n)[:, None] * padded.shape[1] + rows) * padded.shape[2]
    pixels = row_starts[:, :, None] + columns[:, None, :]
    moved = padded.reshape(-1, channels).index_select(0, pixels.flatten())
    return moved.view(n, height, width, channels)


def to_model_input(
    images: Tensor, statistics: tuple[list[float], list[float]] | None, channels_last: bool
) -> Tensor:
    """Scale, normalise and transpose a batch.

    Args:
        images: (n, height, width, channels); uint8 is scaled to 0..1, floats are not.
        statistics: mean and deviation per channel, or None.
        channels_last: memory format of the result.

    Returns:
        float32, (n, channels, height, width).
    """
    divisor = 255.0 if images.dtype == torch.uint8 else 1.0
    mean, std = statistics if statistics is not None else ([0.0], [1.0])
    result = images.permute(0, 3, 1, 2).to(torch.float32, copy=True)
    result.sub_(torch.tensor(mean).mul(divisor)[:, None, None])
    result.div_(torch.tensor(std).mul(divisor)[:, None, None])
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    return result.contiguous(memory_format=wanted)
