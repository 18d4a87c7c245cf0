"""DenseNet for 32×32 images, in its first form: no bottlenecks, no compression.

Paper: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR
2017: every layer reads all earlier ones of its block and adds `growth` channels; between the three
blocks a 1×1 convolution keeps the width and an average halves the image. With 12 layers per block
and a growth of 12 it is DenseNet-40. The first convolution has 24 channels, as in the form that
pruning papers start from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Batch norm, activation, 3×3 convolution; its result is put beside what it read."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class Transition(nn.Module):
    """Batch norm, activation, 1×1 convolution; then the image is halved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class CifarDenseNet(nn.Module):
    """Three dense blocks; input (N, 3, 32, 32), output (N, num_classes)."""

    def __init__(self, layers: int, growth: int, num_classes: int = 10) -> None:
        super().__init__()
        channels = 24
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for block in range(3):
            if block:
                parts.append(Transition(channels))
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.features(self.conv1(x))))
        scores: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def densenet40(num_classes: int = 10) -> CifarDenseNet:
    """Return the network of 12 layers per block and a growth of 12, 1.1 M parameters."""
    return CifarDenseNet(12, 12, num_classes)
