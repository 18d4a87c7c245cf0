"""A small residual network; replace it with your own."""

from torch import Tensor, nn


def conv(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


class Network(nn.Module):
    """A stem, one residual block, and a classifier."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.first = conv(width, width)
        self.second = conv(width, width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        scores: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return scores


def build(num_classes: int, width: int) -> nn.Module:
    """Return the network with random weights."""
    return Network(num_classes, width)
