"""VGG for 32×32 images: convolutions with batch norm, and one linear layer.

Papers: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, for the widths; Liu et al., "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017, for the form that pruning papers use on CIFAR: the last pooling becomes an
average and the three linear layers become one (VGG-19: 20.0 M parameters).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_POOL = 0
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
_VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)


class CifarVgg(nn.Module):
    """3×3 convolutions with batch norm; input (N, 3, 32, 32), output (N, num_classes).

    Args:
        widths: output channels of each convolution; 0 halves the image.
        num_classes: outputs.
    """

    def __init__(self, widths: Sequence[int], num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if width == _POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        scores: Tensor = self.classifier(x)
        return scores


def vgg16_bn(num_classes: int = 10) -> CifarVgg:
    """Return the network of 13 convolutions, 14.7 M parameters."""
    return CifarVgg(_VGG16, num_classes)


def vgg19_bn(num_classes: int = 10) -> CifarVgg:
    """Return the network of 16 convolutions, 20.0 M parameters."""
    return CifarVgg(_VGG19, num_classes)
