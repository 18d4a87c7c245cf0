"""The ResNets for 32×32 images with shortcuts that have no parameters ("option A").

Paper: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2: three stages of 16, 32 and 64 channels with n basic blocks each,
6n + 2 layers. Where a stage halves the image, its shortcut takes every second
pixel and fills the new channels with zeros. Parameter names are those of the
widely used public checkpoints: conv1, bn1, layerS.B.conv1/bn1/conv2/bn2, linear.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the shortcut around them."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        # Zeros on both sides, so that old channels sit in the middle of the new ones.
        self.zeros_each_side = planes // 4 if in_planes != planes else 0

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.zeros_each_side:
            return x
        halved = x[:, :, :: self.stride, :: self.stride]
        return F.pad(halved, (0, 0, 0, 0, self.zeros_each_side, self.zeros_each_side))


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks; input (N, 3, 32, 32), output (N, num_classes)."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        scores: Tensor = self.linear(out)
        return scores


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Return the network of 3 blocks per stage, 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """Return the network of 5 blocks per stage, 0.46 M parameters."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """Return the network of 7 blocks per stage, 0.66 M parameters."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Return the network of 9 blocks per stage, 0.85 M parameters."""
    return CifarResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """Return the network of 18 blocks per stage, 1.7 M parameters."""
    return CifarResNet(18, num_classes)
