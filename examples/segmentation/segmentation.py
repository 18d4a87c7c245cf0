"""A segmenter through the same pipeline as a classifier: task, data and model in one file.

Find circles, squares and triangles, pixel by pixel, in noisy images that are drawn
here. A recipe names the three things below: `task: segmentation.py:Segmentation`,
`data: {source: segmentation.py:shapes}`, `model: {source: segmentation.py:build}`.

    prune2deploy run recipe.yaml       # the whole way to a timed ONNX file
    python segmentation.py             # the same steps in Python, up to the small network
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

CLASSES = ("background", "circle", "square", "triangle")
SIZE = 32


class Segmentation:
    """One class per pixel; outputs are logits (images, classes, height, width)."""

    metric = "miou"
    higher_is_better = True

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy over all pixels."""
        return F.cross_entropy(output, target)

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], loader: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Return mean intersection over union of the classes, and pixel accuracy, in percent."""
        pairs = torch.zeros(len(CLASSES), len(CLASSES))
        for images, target in loader:
            guess = predict(images).argmax(dim=1)
            # Row: true class; column: predicted class.
            numbers = (target * len(CLASSES) + guess).flatten().cpu()
            pairs += torch.bincount(numbers, minlength=pairs.numel()).view_as(pairs)
        hits = pairs.diagonal()
        union = pairs.sum(dim=0) + pairs.sum(dim=1) - hits
        present = union > 0
        return {
            "miou": 100 * float((hits[present] / union[present]).mean()),
            "pixel_accuracy": 100 * float(hits.sum() / pairs.sum()),
        }

    def outputs(self, output: Tensor) -> dict[str, Tensor]:
        """Name the output of the ONNX file."""
        return {"mask_logits": output}

    def agreement(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        """Return the share of pixels to which two networks' named outputs give the same class."""
        same = a["mask_logits"].argmax(dim=1) == b["mask_logits"].argmax(dim=1)
        return float(same.float().mean())


def shapes(train: int = 1000, test: int = 200, seed: int = 0) -> dict[str, Dataset[Any]]:
    """Draw images (3, 32, 32), values around 0 to 1, and their masks (32, 32) of class numbers."""
    generator = torch.Generator().manual_seed(seed)
    images, masks = zip(*(_draw(generator) for _ in range(train + test)), strict=True)
    everything = torch.stack(images), torch.stack(masks)
    return {
        "train": TensorDataset(*(part[:train] for part in everything)),
        "test": TensorDataset(*(part[train:] for part in everything)),
    }


def _draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one image: a plain background, three shapes over one another, and noise."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = torch.zeros(SIZE, SIZE, dtype=torch.int64)
    image = torch.rand(3, 1, 1, generator=generator).expand(3, SIZE, SIZE)
    for _ in range(3):
        kind = int(torch.randint(1, len(CLASSES), (), generator=generator))
        row, column = torch.randint(6, SIZE - 6, (2,), generator=generator).tolist()
        half = int(torch.randint(4, 9, (), generator=generator))
        down, right = y - row, x - column
        inside = {
            "circle": down**2 + right**2 <= half**2,
            "square": (down.abs() <= half) & (right.abs() <= half),
            "triangle": (down.abs() <= half) & (2 * right.abs() <= down + half),
        }[CLASSES[kind]]
        colour = torch.rand(3, 1, 1, generator=generator)
        image = torch.where(inside, colour, image)
        mask = torch.where(inside, kind, mask)
    return image + 0.1 * torch.randn(image.shape, generator=generator), mask


class Segmenter(nn.Module):
    """An encoder and a decoder with two skip connections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top = _double(3, width)
        self.middle = _double(width, 2 * width)
        self.bottom = _double(2 * width, 3 * width)
        self.up_middle = _double(5 * width, 2 * width)
        self.up_top = _double(3 * width, width)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (images, classes, height, width)."""
        top = self.top(images)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, F.interpolate(bottom, scale_factor=2)], dim=1))
        logits: Tensor = self.head(
            self.up_top(torch.cat([top, F.interpolate(middle, scale_factor=2)], dim=1))
        )
        return logits


def _double(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def build(width: int = 16) -> nn.Module:
    """Return the network, untrained."""
    return Segmenter(width)


def main() -> None:
    """Train, cut half of the multiply-accumulates, train again, and print what it cost."""
    import prune2deploy as p2d
    from prune2deploy.data import open_data
    from prune2deploy.train import Distillation, TrainSettings, evaluate, fit

    here = Path(__file__).parent
    data = open_data("segmentation.py:shapes", base_dir=here, input_shape=(3, SIZE, SIZE))
    test = data.loader("test", batch_size=100)
    task = Segmentation()
    torch.manual_seed(0)
    large = build()
    fit(large, task, data, TrainSettings(epochs=8, lr=0.1, batch_size=32))
    graph = p2d.trace(large, torch.zeros(1, 3, SIZE, SIZE))
    small = p2d.cut(large, p2d.plan(graph, method="l1", budget={"macs": 0.5}))
    settings = TrainSettings(epochs=4, lr=0.05, batch_size=32, distill=Distillation())
    fit(small, task, data, settings, teacher=large)
    for name, model in (("original", large), ("half the MACs", small)):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        miou = evaluate(model, task, test)["miou"]
        print(f"{name:14} {parameters:7,} parameters   mean IoU {miou:.1f} %")


if __name__ == "__main__":
    main()
