"""What a network that is tried costs: counted, predicted from a device's table, or measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from prune2deploy.channels import Graph
from prune2deploy.devices import Devices, load_devices
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.methods.base import Counts
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.planning.timed.target import Bench, Goal, Target, open_target
from prune2deploy.recipe import Recipe
from prune2deploy.search.front import CostName

_EACH_TIME_S = 2.0
"""How long each network is measured, where all are."""


@dataclass(frozen=True)
class Cost:
    """The second objective.

    of: its value for counts and the network that they make. size, size_name: what the space of
    networks goes by, macs or params. step: what widths should be multiples of; None: nobody knows.
    predicted: for plans by time.
    """

    name: CostName
    of: Callable[[Counts, nn.Module], float]
    size: Callable[[Counts], int]
    size_name: Literal["macs", "params"]
    step: int | None = None
    predicted: Target | None = None


@contextmanager
def open_cost(recipe: Recipe, inputs: Inputs, graph: Graph) -> Iterator[Cost]:
    """Make ready what the search's cost needs: for a latency the table of the device is filled."""
    section = recipe.prune.search
    assert section is not None
    if section.cost == "macs":
        yield _counted("macs", "MACs", graph.cost.macs)
    elif section.cost == "params":
        yield _counted("params", "parameters", graph.cost.params)
    else:
        with tempfile.TemporaryDirectory(prefix="prune2deploy-search-") as folder:
            yield _timed(recipe, inputs, graph, Path(folder))


def _counted(name: Literal["macs", "params"], unit: str, count: Callable[[Counts], int]) -> Cost:
    return Cost(CostName(name=name, unit=unit), lambda counts, _: float(count(counts)), count, name)


def _timed(recipe: Recipe, inputs: Inputs, graph: Graph, folder: Path) -> Cost:
    section = recipe.prune.search
    assert section is not None
    devices = load_devices()
    options = ProfileOptions(threads=recipe.profile.threads, seed=recipe.seed)
    export = exporter(recipe, inputs)
    original = folder / "original.onnx"
    export(graph.model, original)
    bench = Bench(original, devices, options)
    found = open_target(graph, Goal(section.on, speedup=1.0), original, bench)
    name = CostName(name="latency", unit="ms", device=section.on, measured=section.measure)

    def predicted(counts: Counts, _: nn.Module) -> float:
        return found.predictor.total_us(counts) / 1000

    def measured(_: Counts, network: nn.Module) -> float:
        small = folder / "tried.onnx"
        export(network, small)
        return found.original_us / 1000 / _speedup(original, small, section.on, devices, options)

    of = measured if section.measure else predicted
    return Cost(name, of, graph.cost.macs, "macs", found.predictor.table.step, found)


def _speedup(
    original: Path, small: Path, device: str, devices: Devices, options: ProfileOptions
) -> float:
    """Both in turns: what slows the machine down from one network to the next slows both down."""
    result = profile(
        {"original": original, "tried": small},
        device=device,
        options=replace(options, min_time_s=_EACH_TIME_S),
        devices=devices,
    )
    return result.speedups[0].ratio
