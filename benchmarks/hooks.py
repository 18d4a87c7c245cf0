"""What a method's hooks cost: a training step of ResNet-20 with them against one without.

    python benchmarks/hooks.py [METHOD ...] [--batch 128] [--blocks 12] [--steps 4]
        [--threads 1] [--output hooks.json]

Both train the same network on random 32×32 images in float32. Blocks of steps take turns (with,
without, without, with, ...), so that whatever else the machine does hits both; the figure is the
median of the ratios of neighbouring blocks, with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from prune2deploy.channels import trace
from prune2deploy.methods import METHODS, Method
from prune2deploy.methods.base import Step
from prune2deploy.models.cifar_resnet import resnet20

LR = 0.01
LONG = 10_000
"""Steps that the training seems to have, so that nothing ends within the measurement."""


def arm(batch: int, method: Method[Any] | None) -> Callable[[int], float]:
    """A training that does so many steps and returns the seconds they took."""
    torch.manual_seed(0)
    model = resnet20()
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    graph = trace(model, images[:2])
    if method is not None:
        method.attach(graph)
    own = set() if method is None else {id(p) for p in method.own_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    optimizer = torch.optim.SGD(
        trained or [torch.zeros(1, requires_grad=True)], lr=LR, momentum=0.9, weight_decay=5e-4
    )
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        model.train()
        start = time.perf_counter()
        for _ in range(steps):
            done += 1
            optimizer.zero_grad()
            output = model(images)
            loss = F.cross_entropy(output, labels)
            if method is not None:
                loss = method.whole_loss(loss, images, output)
                extra = method.extra_loss()
                loss = loss if extra is None else loss + extra
            loss.backward()
            if method is not None:
                method.after_backward()
            optimizer.step()
            if method is not None:
                method.after_step(Step(LR, done, LONG, ends_epoch=False))
        return time.perf_counter() - start

    return run


def overhead(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median and 95 % interval of the ratio of a step with the hooks to one without."""
    kind = METHODS[name]
    hooked, plain = arm(arguments.batch, kind(kind.options())), arm(arguments.batch, None)
    hooked(2)
    plain(2)
    ratios = []
    for number in range(arguments.blocks):
        if number % 2:
            without, with_hooks = plain(arguments.steps), hooked(arguments.steps)
        else:
            with_hooks, without = hooked(arguments.steps), plain(arguments.steps)
        ratios.append(with_hooks / without)
    random = np.random.default_rng(0)
    drawn = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def main() -> None:
    """Measure, and print the table."""
    learning = sorted(
        name
        for name, kind in METHODS.items()
        if kind.granularity == "channel" and (kind.needs_training or kind.may_train)
    )
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("methods", nargs="*", choices=[[], *learning], metavar="METHOD")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {}
    for name in arguments.methods or learning:
        found[name] = overhead(name, arguments)
    console = Console()
    table = Table("method", "step with hooks / without", "95 % interval")
    for name, one in sorted(found.items(), key=lambda item: item[1]["ratio"]):
        table.add_row(name, f"{one['ratio']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}")
    console.print(table)
    if arguments.output:
        about = {"processor": platform.processor(), "date": str(date.today())}
        arguments.output.write_text(json.dumps({**about, "ratios": found}))


if __name__ == "__main__":
    main()
