"""One network with everything that a method can meet, and calls shared by the methods' tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from networks import Net, randomize_norms
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.methods import METHODS, Context, Method
from prune2deploy.methods.base import Step


def make(name: str, **options: Any) -> Method[Any]:
    kind = METHODS[name]
    return kind(kind.options(**options))


def batches(count: int, size: int) -> list[Tensor]:
    """`count` fixed images, `size` in a batch."""
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return list(images.split(size))


def losses(model: nn.Module, count: int, size: int) -> Iterator[Tensor]:
    """The loss of the same images, with made-up classes."""
    dtype = next(model.parameters()).dtype
    for images in batches(count, size):
        yield F.cross_entropy(model(images.to(dtype)), torch.arange(len(images)) % 4)


def step(lr: float = 0.1, number: int = 1, total: int = 1, ends_epoch: bool = False) -> Step:
    """Where a training stands, for hooks that ask."""
    return Step(lr, number, total, ends_epoch)


def train(method: Method[Any], graph: Graph, steps: int, lr: float = 0.05) -> None:
    """Train graph.model on images of made-up classes, with hooks that are attached."""
    own = {id(p) for p in method.own_parameters()}
    model = graph.model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if id(p) not in own], lr=lr)
    for number, images in enumerate(batches(8 * steps, 8), 1):
        optimizer.zero_grad()
        output = model(images)
        loss = F.cross_entropy(output.flatten(2).mean(2) if output.dim() > 2 else output, _CLASSES)
        loss = method.whole_loss(loss, images, output)
        extra = method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(Step(lr, number, steps, number == steps))
    model.eval()


_CLASSES = torch.arange(8) % 4


def scores_of(name: str, graph: Graph, **options: Any) -> list[Tensor | None]:
    if METHODS[name].needs_data:
        options = {"images": 6, "batch_size": 4, **options}
    return make(name, **options).score(Context(graph, batches, losses))


def build_mixed() -> nn.Module:
    """A residual addition, a depthwise layer, a concatenation and a flatten, all normalised."""
    torch.manual_seed(0)

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(net.norm1(net.stem(x)))
        x = F.relu(x + net.norm2(net.inner(x)))
        x = F.relu6(net.norm3(net.depth(x)))
        x = torch.cat([x, torch.tanh(net.norm4(net.side(x)))], 1)
        return net.head(net.norm5(net.hidden(F.max_pool2d(x, 4).flatten(1))))

    return randomize_norms(
        Net(
            forward,
            stem=nn.Conv2d(3, 10, 3, padding=1),
            norm1=nn.BatchNorm2d(10),
            inner=nn.Conv2d(10, 10, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(10),
            depth=nn.Conv2d(10, 10, 3, padding=1, groups=10),
            norm3=nn.BatchNorm2d(10),
            side=nn.Conv2d(10, 6, 1),
            norm4=nn.BatchNorm2d(6),
            hidden=nn.Linear(16 * 4, 8),
            norm5=nn.BatchNorm1d(8),
            head=nn.Linear(8, 4),
        )
    )
