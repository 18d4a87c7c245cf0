"""A network with an operator that prune2deploy does not know, and the rule for it.

`antialias::blur` stands for a kernel of your own: written in C++, CUDA or Triton, it arrives as
one operator that nobody can look into. Without a rule, what goes into it stays whole and is
reported; with the ten lines below its channels can be cut. The rule lives beside the model, so
that whoever imports the model has it:

    prune2deploy inspect examples/own_rule/network.py:build --input 1,3,32,32
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune2deploy.channels.rules import Call, Tracer, rule


@torch.library.custom_op("antialias::blur", mutates_args=())
def blur(x: Tensor, stride: int) -> Tensor:
    """Blur every channel of (N, C, H, W) with a 3×3 kernel and keep every `stride`-th pixel."""
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, stride=stride, padding=1, groups=x.shape[1])


@blur.register_fake
def _blur_shape(x: Tensor, stride: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, c, (h - 1) // stride + 1, (w - 1) // stride + 1)


@rule("antialias.blur")
def _blur(t: Tracer, call: Call) -> None:
    """Each channel by itself; pixels are mixed with their neighbours."""
    batch, channels, *space = t.labels(call.args["x"]).dims
    for ids in space:
        t.nodes.freeze(ids, "the blur mixes pixels along this dimension")
    t.set(call.out, [batch, channels, None, None])


class Network(nn.Module):
    """Three convolutions, with a blur in place of a strided one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 10) for images (N, 3, H, W)."""
        x = blur(self.stem(x), 2)
        x = blur(self.body(x), 2)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def build() -> nn.Module:
    """The network with random weights."""
    return Network()
