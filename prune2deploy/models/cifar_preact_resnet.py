"""Pre-activation ResNet with bottlenecks for 32×32 images.

Paper: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016: batch norm
and activation come before each convolution, and nothing stands on the way past a block. Three
stages of bottleneck blocks, 16, 32 and 64 channels inside and four times as many outside; with 18
blocks per stage 164 layers. Where the shape changes, the shortcut is a 1×1 convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 4


class PreActBottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each behind batch norm and activation, and the shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        out_planes = planes * _EXPANSION
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != out_planes:
            self.shortcut = nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        result: Tensor = out + self.shortcut(x)
        return result


class CifarPreActResNet(nn.Module):
    """Three stages of `blocks` bottlenecks; input (N, 3, 32, 32), output (N, num_classes)."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        channels = 16
        for stage, planes in enumerate((16, 32, 64)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBottleneck(channels, planes, stride))
                channels = planes * _EXPANSION
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        scores: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def preact_resnet164(num_classes: int = 10) -> CifarPreActResNet:
    """Return the network of 18 blocks per stage, 1.7 M parameters."""
    return CifarPreActResNet(18, num_classes)
