"""Images per second of the training loop against a plain PyTorch loop, on this machine.

Both train a CIFAR ResNet with SGD on random 32×32 images. The plain loop computes
in float32 on NCHW tensors that are ready to use; ours does what a recipe does:
decoded images in memory, random crops and flips, channels_last, bf16 where the
processor has it, the checks and the bookkeeping of `fit`. Blocks of both take
turns (ours, plain, plain, ours, ...), so that whatever else the machine does hits
both; the ratio is that of neighbouring blocks, with a bootstrap interval.

    python benchmarks/training.py --output training.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from prune2deploy.data import Augment, DataSource, open_data
from prune2deploy.models import load_model
from prune2deploy.train import Classification, TrainSettings, cpu_bf16_features, fit

TARGET_RATIO = 1.5


@dataclass(frozen=True)
class Arm:
    """One way to train: does so many steps and returns the seconds they took."""

    name: str
    run: Callable[[int], float]


def random_data(images: int, folder: Path) -> DataSource:
    """Return a data set of random images and labels in memory."""
    rng = np.random.default_rng(0)
    np.savez(
        folder / "random.npz",
        x_train=rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8),
        y_train=np.arange(images) % 10,
        x_test=rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8),
        y_test=np.arange(10),
    )
    return open_data(
        "npz",
        root=folder / "random.npz",
        input_shape=(3, 32, 32),
        normalize="imagenet",
        augment=Augment(flip=True, crop_padding=4),
    )


def build(model: str) -> torch.nn.Module:
    """Return a CIFAR ResNet with random weights, the same ones each time."""
    torch.manual_seed(0)
    return load_model(f"cifar:{model}", {}, base_dir=Path.cwd(), num_classes=10, checkpoint=None)


def plain_arm(model_name: str, batch_size: int) -> Arm:
    """Return the loop that every tutorial has."""
    model = build(model_name).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.arange(batch_size) % 10

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        return time.perf_counter() - start

    return Arm("plain loop, fp32 NCHW", run)


def our_arm(model_name: str, batch_size: int, data: DataSource, precision: str) -> Arm:
    """Return `fit`, with everything it does around the steps."""
    model = build(model_name)
    steps_per_epoch = data.size("train") // batch_size

    def run(steps: int) -> float:
        settings = TrainSettings(
            epochs=steps / steps_per_epoch,
            lr=0.01,
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            accelerator="cpu",
        )
        start = time.perf_counter()
        history = fit(model, Classification(), data, settings)
        seconds = time.perf_counter() - start
        assert sum(epoch.steps for epoch in history.epochs) == steps
        return seconds

    return Arm(f"prune2deploy, {precision}", run)


def take_turns(arms: list[Arm], blocks: int, steps: int) -> list[list[float]]:
    """Return the seconds of every block, per arm; the order of the arms alternates."""
    for arm in arms:
        arm.run(steps)
    seconds: list[list[float]] = [[] for _ in arms]
    for block in range(blocks):
        order = list(range(len(arms)))
        for index in order if block % 2 else order[::-1]:
            seconds[index].append(arms[index].run(steps))
    return seconds


def ratio_with_interval(plain: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Return the median of paired speed ratios, and its 95 % bootstrap interval."""
    ratios = np.array(plain) / np.array(ours)
    rng = np.random.default_rng(0)
    draws = rng.choice(ratios, size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet20", help="a CIFAR ResNet")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=12, help="of each loop")
    parser.add_argument("--steps", type=int, default=10, help="per block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as folder:
        data = random_data(100 * options.batch_size, Path(folder))
        data.loader("train", batch_size=options.batch_size)
    arms = [
        plain_arm(options.model, options.batch_size),
        our_arm(options.model, options.batch_size, data, "auto"),
        our_arm(options.model, options.batch_size, data, "fp32"),
    ]
    seconds = take_turns(arms, options.blocks, options.steps)
    images = options.batch_size * options.steps
    rows = []
    for arm, taken in zip(arms, seconds, strict=True):
        ratio, low, high = ratio_with_interval(seconds[0], taken)
        rows.append(
            {
                "loop": arm.name,
                "images_per_s_median": images / float(np.median(taken)),
                "images_per_s_best": images / min(taken),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "seconds": taken,
            }
        )
    report = {
        "benchmark": "training",
        "model": options.model,
        "batch_size": options.batch_size,
        "steps_per_block": options.steps,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "bf16_features": cpu_bf16_features(),
        "target_ratio": TARGET_RATIO,
        "loops": rows,
    }
    print(f"{options.model}, batch {options.batch_size}, {options.threads} thread(s)")
    print(f"{'loop':28} {'images/s':>9} {'best':>7} {'ratio':>6}  95 % interval")
    for row in rows:
        print(
            f"{row['loop']:28} {row['images_per_s_median']:9.0f} {row['images_per_s_best']:7.0f} "
            f"{row['ratio']:6.2f}  {row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        )
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
