"""Scores by matrix algebra against the formulas as they are written, on this machine.

CHIP: one eigendecomposition per feature map against a singular value decomposition per
channel. ThiNet: the order of discarding from the Gram matrix against norms of sums of sampled
columns. FPGM: distances from the Gram matrix against all pairs of filters. Both forms of a
score get the same numbers, take turns (ours, slow, slow, ours, ...), and must agree; the ratio
is that of neighbouring turns, with a bootstrap interval.

    python benchmarks/scores.py --output scores.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from training import ratio_with_interval

from prune2deploy.methods.chip import channel_independence
from prune2deploy.methods.fpgm import distance_sums
from prune2deploy.methods.thinet import discard_order

LARGEST_DIFFERENCE = 1e-4
"""Relative, per channel; beyond it the two forms do not compute the same score."""


@dataclass(frozen=True)
class Case:
    """Two forms of one score, each a function without arguments that returns scores per channel.

    turns: how often each is run.
    """

    name: str
    ours: Callable[[], Tensor]
    slow: Callable[[], Tensor]
    turns: int


def chip_by_definition(maps: Tensor) -> Tensor:
    """Nuclear norm of each image minus that with one row zeroed, one row after the other."""
    result = torch.zeros(maps.shape[:2], dtype=torch.float64)
    for n, image in enumerate(maps.double()):
        whole = torch.linalg.svdvals(image).sum()
        for c in range(len(image)):
            without = image.clone()
            without[c] = 0
            result[n, c] = whole - torch.linalg.svdvals(without).sum()
    return result


def thinet_by_definition(x: Tensor) -> Tensor:
    """The place of each column, every candidate's sum computed over all samples."""
    total = torch.zeros(len(x), dtype=x.dtype)
    left = list(range(x.shape[1]))
    places = torch.zeros(x.shape[1])
    for place in range(1, x.shape[1] + 1):
        values = (total[:, None] + x[:, left]).square().sum(dim=0)
        goes = left.pop(int(values.argmin()))
        total = total + x[:, goes]
        places[goes] = place
    return places


def thinet_by_gram(x: Tensor) -> Tensor:
    """The same from X^T X."""
    places = torch.zeros(x.shape[1])
    places[discard_order(x.mT @ x)] = torch.arange(1.0, x.shape[1] + 1)
    return places


def fpgm_by_definition(weight: Tensor) -> Tensor:
    """Distances to all filters, one filter after the other."""
    filters = weight.double().flatten(1)
    return torch.stack([(filters - one).norm(dim=1).sum() for one in filters])


def cases(turns: int) -> list[Case]:
    """Return what is measured; random numbers of the sizes that networks have."""
    random = torch.Generator().manual_seed(0)
    found = []
    for channels, side, images in ((64, 32, 4), (256, 14, 1)):
        # Behind a ReLU, with channels that mix a few patterns as those of networks do.
        patterns = torch.randn(images, channels // 2, side * side, generator=random)
        mixing = torch.randn(images, channels, channels // 2, generator=random)
        noise = torch.randn(images, channels, side * side, generator=random)
        maps = (mixing @ patterns / channels**0.5 + 0.3 * noise).relu()
        found.append(
            Case(
                f"CHIP, {channels} channels of {side}×{side}, images: {images}",
                lambda maps=maps: channel_independence(maps).mean(dim=0),
                lambda maps=maps: chip_by_definition(maps).mean(dim=0),
                turns,
            )
        )
    x = torch.randn(6400, 256, generator=random, dtype=torch.float64)
    found.append(
        Case(
            "ThiNet, 256 channels, 6400 samples",
            lambda: thinet_by_gram(x),
            lambda: thinet_by_definition(x),
            turns,
        )
    )
    weight = torch.randn(512, 512, 3, 3, generator=random)
    found.append(
        Case(
            "FPGM, 512 filters of 512×3×3",
            lambda: distance_sums(weight),
            lambda: fpgm_by_definition(weight),
            turns,
        )
    )
    return found


def seconds_of(form: Callable[[], Tensor]) -> float:
    """Return how long one run takes."""
    start = time.perf_counter()
    form()
    return time.perf_counter() - start


def measure(case: Case) -> dict[str, object]:
    """Compare the scores, then the times."""
    ours, slow = case.ours(), case.slow()  # and warm up
    difference = float(((ours - slow).abs() / slow.abs()).max())
    same_ranking = torch.equal(ours.argsort(stable=True), slow.argsort(stable=True))
    if difference > LARGEST_DIFFERENCE or not same_ranking:
        raise SystemExit(
            f"{case.name}: the two forms differ by {difference:.1e} relative, "
            f"{'the same' if same_ranking else 'another'} ranking. Nothing was timed."
        )
    taken: dict[str, list[float]] = {"ours": [], "slow": []}
    for turn in range(case.turns):
        pair = [("ours", case.ours), ("slow", case.slow)]
        for name, form in pair if turn % 2 else pair[::-1]:
            taken[name].append(seconds_of(form))
    ratio, low, high = ratio_with_interval(taken["slow"], taken["ours"])
    return {
        "score": case.name,
        "ms_median": 1000 * float(np.median(taken["ours"])),
        "slow_ms_median": 1000 * float(np.median(taken["slow"])),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "largest_relative_difference": difference,
        "same_ranking": same_ranking,
        "seconds": taken,
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9, help="of each form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"{options.threads} thread(s), torch {torch.__version__}")
    print(
        f"{'score':44} {'ms':>8} {'slow ms':>9} {'ratio':>7}  {'95 % interval':16} {'differ by':>9}"
    )
    rows = []
    for case in cases(options.turns):
        row = measure(case)
        rows.append(row)
        interval = f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}"
        print(
            f"{row['score']:44} {row['ms_median']:8.1f} {row['slow_ms_median']:9.1f} "
            f"{row['ratio']:7.1f}  {interval:16} {row['largest_relative_difference']:9.1e}"
        )
    report = {
        "benchmark": "scores",
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "scores": rows,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
