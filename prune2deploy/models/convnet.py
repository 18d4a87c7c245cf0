"""A plain convolutional network for the 8×8 digits.

Wide for such small images on purpose: half of its multiplications must show on
the clock, and a narrower network would spend its time in calls and not in sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_WIDTHS = (64, 64, 128, 128)


class ConvNet(nn.Module):
    """Convolutions with batch norm, the image halved halfway; then an average and a classifier."""

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for index, width in enumerate(widths):
            if index == len(widths) // 2:
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return scores


def convnet(num_classes: int = 10, widths: Sequence[int] = _WIDTHS) -> ConvNet:
    """Return the network for inputs of (N, 1, H, W); one convolution per entry of `widths`."""
    return ConvNet(num_classes, widths)
