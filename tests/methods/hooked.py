"""Train with a method's hooks as the training loop does, on a task with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scoring import batches
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.methods import Method
from prune2deploy.methods.base import Step

Batch = tuple[Tensor, Tensor]


def fixed(number: int) -> Batch:
    """Eight of the fixed images, with made-up classes."""
    images = batches(32, 8)[number % 4]
    return images, torch.arange(8) % 4


def train_with_hooks(
    method: Method[Any],
    graph: Graph,
    steps: int = 6,
    lr: float = 0.05,
    data: Callable[[int], Batch] = fixed,
    task: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> None:
    """Every hook but detach, in the training loop's order; the model ends in eval mode."""
    torch.manual_seed(0)
    model = graph.model
    method.attach(graph)
    theirs = {id(p) for p in method.own_parameters()}
    mine = [p for p in model.parameters() if p.requires_grad and id(p) not in theirs]
    optimizer = torch.optim.SGD(mine or [torch.zeros(1, requires_grad=True)], lr, momentum=0.9)
    model.train()
    for number in range(1, steps + 1):
        images, targets = data(number)
        optimizer.zero_grad()
        output = model(images)
        loss = method.whole_loss(task(output, targets), images, output)
        penalty = method.extra_loss()
        (loss if penalty is None else loss + penalty).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(Step(lr, number, steps, ends_epoch=number == steps))
    model.eval()


USEFUL, USELESS = range(4), range(4, 8)


def half_useless() -> Graph:
    """Eight channels of which the last four are not read: their weights there are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    with torch.no_grad():
        for part in (model[0], model[5]):
            part.weight.zero_()
            part.bias.zero_()
        for channel in range(8):
            model[0].weight[channel, channel % 4] = 1.0
        for channel in USEFUL:
            model[5].weight[channel, channel] = 4.0
    graph = trace(model, torch.randn(2, 4, 3, 3))
    assert [group.size for group in graph.groups] == [8]
    return graph


def brightest(number: int) -> Batch:
    """Images whose class is the channel of the input that is brighter than the others."""
    random = torch.Generator().manual_seed(number)
    classes = torch.arange(16) % 4
    images = torch.randn(16, 4, 3, 3, generator=random)
    images[torch.arange(16), classes] += 2.0
    return images, classes
