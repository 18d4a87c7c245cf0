"""A budget of time on one device: what is asked for, and what is known of the times there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prune2deploy.budget.latency import Counts, Parts
from prune2deploy.channels import Graph
from prune2deploy.devices import Devices, open_device
from prune2deploy.errors import DeviceError
from prune2deploy.latency import Latency, ProfileOptions, ProfileResult, profile, profile_layers
from prune2deploy.latency.staircase.measure import fill, open_table, prepare
from prune2deploy.latency.staircase.memory import peak_activations
from prune2deploy.latency.staircase.network import Predictor, own_times, read_network

log = logging.getLogger(__name__)

Export = Callable[[nn.Module, Path], object]
"""Writes a model as the ONNX file that is measured."""

CLOSE = 0.95
"""A time between this share of its budget and the budget has met it."""

SIZES = {"size_mb": "the file", "memory_mb": "memory"}
"""Sizes that may be limited beside a time, with what they are called."""

AIM = (1 + CLOSE) / 2
LAYERS_TIME_S = 2.0
_WIDE = 1 - AIM  # where an interval's end is further off, a budget is hardly ever met
_LONGEST = 4  # times as long as was asked for, that a restless machine is measured
_FULL_CORRECTIONS = 2


@dataclass(frozen=True)
class Goal:
    """What is asked for on one device: a median in ms, or a speed-up over the original.

    part: of several rounds, how far this one goes; each takes the same share of the time.
    limits: the most MB (10^6 bytes) of each of SIZES.
    """

    device: str
    latency_ms: float | None = None
    speedup: float | None = None
    part: float = 1.0
    limits: Mapping[str, float] = field(default_factory=dict)

    def budget_us(self, original_us: float) -> float:
        """The time that is allowed. original_us: what the original takes."""
        if self.latency_ms is None:
            assert self.speedup is not None
            share = 1 / self.speedup
        else:
            share = self.latency_ms * 1000 / original_us
        return float(original_us * share**self.part)

    def used(self, result: ProfileResult) -> float:
        """The share of what is allowed that is used, at the unfavourable end of the interval.

        result: of the original and the network in question, in this order.
        """
        return self.span(result)[1]

    def span(self, result: ProfileResult) -> tuple[float, float]:
        """The interval of the share of what is allowed that is used."""
        if self.speedup is not None:
            one, allowed = result.speedups[0], self.speedup**self.part
            return float(allowed / one.high), float(allowed / one.low)
        original, other = result.latencies
        low, high = other.median_ci95_ms or (0.0, math.inf)
        budget_ms = self.budget_us(original.median_ms * 1000) / 1000
        return low / budget_ms, high / budget_ms

    def sizes(self, result: ProfileResult) -> dict[str, Size]:
        """What is limited: of the original, of the network in question, and allowed, in MB.

        Raises:
            DeviceError: the device does not tell how much memory a process takes.
        """
        found = {}
        for name, most in self.limits.items():
            first, other = (size_mb(name, one, self.device) for one in result.latencies)
            found[name] = Size(other, first ** (1 - self.part) * most**self.part)
        return found


@dataclass(frozen=True)
class Size:
    """MB that a network takes, and those that it may."""

    mb: float
    allowed_mb: float

    @property
    def share(self) -> float:
        """What is used of what is allowed."""
        return self.mb / self.allowed_mb

    def __str__(self) -> str:
        return f"{self.mb:.4g} of {self.allowed_mb:.4g} MB"


def size_mb(name: str, latency: Latency, device: str) -> float:
    """The size of a file, or the peak of a process that runs it once and did nothing before."""
    if name == "size_mb":
        return latency.path.stat().st_size / 1e6
    if latency.peak_memory_mb is None:
        raise DeviceError(
            f"'{device}' does not tell how much memory a process takes, so memory_mb cannot be "
            "held there. Remove prune.budget.memory_mb, or measure on another device."
        )
    return latency.peak_memory_mb


def goals_of(asked: Mapping[str, float], names: Sequence[str], part: float = 1.0) -> list[Goal]:
    """The goals of a recipe's budget: the same on each of its devices."""
    limits = {name: asked[name] for name in SIZES if name in asked}
    return [
        Goal(name, asked.get("latency_ms"), asked.get("speedup"), part, limits) for name in names
    ]


@dataclass(frozen=True)
class Attempt:
    """One round on one device, times in ms. used: of the budget, at the unfavourable end."""

    device: str
    predicted_ms: float
    measured_ms: float
    budget_ms: float
    used: float
    sizes: Mapping[str, Size] = field(default_factory=dict)

    @property
    def most_used(self) -> float:
        """The largest share of what is allowed, of the time and of every size."""
        return max([self.used, *(size.share for size in self.sizes.values())])

    def __str__(self) -> str:
        sizes = "".join(f"; {SIZES[name]} {size}" for name, size in self.sizes.items())
        return (
            f"predicted {self.predicted_ms:.4g} ms, measured {self.measured_ms:.4g} ms, allowed "
            f"{self.budget_ms:.4g} ms ({self.used:.1%} used){sizes}"
        )


@dataclass(frozen=True)
class Bench:
    """How times are measured. original: the file that networks are measured beside."""

    original: Path
    devices: Devices
    options: ProfileOptions

    def layers(self, goal: Goal, path: Path) -> Mapping[str, Any]:
        """Have a network's layers timed: the probe's answer."""
        result = profile_layers(
            {path.stem: path},
            device=goal.device,
            options=replace(self.options, min_time_s=LAYERS_TIME_S),
            devices=self.devices,
        )
        return result.answer

    def measure(self, goal: Goal, path: Path, original_us: float, predicted_us: float) -> Attempt:
        """Measure a network beside the original. predicted_us: its time, as it was thought."""
        result = self._compared(goal, path)
        measured = result.latencies[1].median_ms * 1000
        if goal.speedup is not None:
            # Both in turns: what slows the machine down slows both down.
            measured = original_us / result.speedups[0].ratio
        budget = goal.budget_us(original_us) / 1000
        used, sizes = goal.used(result), goal.sizes(result)
        return Attempt(goal.device, predicted_us / 1000, measured / 1000, budget, used, sizes)

    def _compared(self, goal: Goal, path: Path) -> ProfileResult:
        """Measure both in turns; where that decides nothing, once more and for longer.

        The second measurement counts whatever it says, so that no lucky one is waited for.
        """
        result = self._profiled(goal, path, 1)
        low, high = goal.span(result)
        doubt = math.sqrt(high / low) - 1 if low > 0 else math.inf
        if low > 1 or high < CLOSE or doubt <= _WIDE:
            return result
        # An interval is half as wide after four times as long.
        factor = math.ceil(min(_LONGEST, (doubt / _WIDE) ** 2))
        log.info(
            "%s is restless: the time is known to %.1f %%; measuring %d times as long",
            goal.device,
            100 * doubt,
            factor,
        )
        return self._profiled(goal, path, factor)

    def _profiled(self, goal: Goal, path: Path, factor: int) -> ProfileResult:
        options = replace(
            self.options,
            min_time_s=factor * self.options.min_time_s,
            min_samples=factor * self.options.min_samples,
            min_blocks=factor * self.options.min_blocks,
        )
        return profile(
            {"original": self.original, "pruned": path},
            device=goal.device,
            options=options,
            devices=self.devices,
        )


@dataclass
class Ceiling:
    """A limit on a size that is seen of a file, or of a run of it.

    cost: the bytes that widths decide, as they are counted. base_mb: what is there without any
    network. allowed_mb: of all. factor: MB that are seen for each byte that is counted.
    """

    name: str
    cost: Callable[[Counts], float]
    base_mb: float
    allowed_mb: float
    factor: float

    def mb(self, counts: Counts) -> float:
        """What is expected of counts."""
        return self.base_mb + self.factor * self.cost(counts)

    def see(self, counts: Counts, mb: float) -> None:
        """Correct what is expected by what is seen."""
        self.factor = max((mb - self.base_mb) / self.cost(counts), 1e-12)


@dataclass
class Target:
    """One device with what is known of its times.

    predictor: of the network that is cut. original_us: what the original takes, whole, by the
    clock. allowed_us: what the solver may use up by the prediction; corrections move it.
    """

    goal: Goal
    predictor: Predictor
    original_us: float
    ceilings: Sequence[Ceiling] = ()
    allowed_us: float = field(init=False)
    _seen: list[tuple[Counts, float]] = field(init=False, default_factory=list)
    _unit: float = field(init=False)

    def __post_init__(self) -> None:
        self.allowed_us = self.budget_us * AIM
        self._unit = self.predictor.factor

    @property
    def budget_us(self) -> float:
        """The time that is allowed."""
        return self.goal.budget_us(self.original_us)

    @property
    def step(self) -> int:
        """Widths that are multiples of it are on the good side of the device's steps."""
        return self.predictor.table.step or 1

    def parts(self) -> Parts:
        """The predicted time as the solver takes it."""
        predictor, network = self.predictor, self.predictor.network
        count = len(network.full)
        forms = [(layer.inside, layer.outside) for layer in network.layers]
        return Parts(
            times=[partial(self._layer_us, n) for n in range(len(network.layers))],
            groups=[
                [g for g in range(count) if inside[1 + g] or outside[1 + g]]
                for inside, outside in forms
            ],
            rest=predictor.factor * network.rest_us,
        )

    def _layer_us(self, number: int, kept: Counts) -> float:
        return self.predictor.factor * self.predictor.layer_us(number, kept)

    def limits(self) -> list[tuple[Callable[[Counts], float], float]]:
        """The sizes as the solver takes them: a cost of the counts, and the most it may be."""
        return [(one.mb, one.allowed_mb) for one in self.ceilings]

    def attempt(self, counts: Counts, small: Path, bench: Bench) -> Attempt:
        """Measure the whole cut network, and correct the prediction by what is seen.

        Layer by layer, if another network is likely to be needed; then the whole.
        """
        predicted = self.predictor.total_us(counts)
        found = bench.measure(self.goal, small, self.original_us, predicted)
        if not CLOSE <= found.used <= 1:
            answer = bench.layers(self.goal, small)
            # The profile is of a session of its own, in which the machine may have been slower.
            plain = answer["models"][0]["plain_run_us"]["median"]
            speed = found.measured_ms * 1000 / plain / self._unit
            own = own_times(small, answer, self.predictor.profiler)
            self.predictor.see(counts, {key: us * speed for key, us in own.items()})
        self.predictor.factor *= found.measured_ms * 1000 / self.predictor.total_us(counts)
        self._seen.append((counts, found.used))
        self.allowed_us = self._next(counts, found.used)
        for one in self.ceilings:
            one.see(counts, found.sizes[one.name].mb)
        return found

    def _next(self, last: Counts, used: float) -> float:
        """The time to ask for next, by the prediction as it is now.

        Between a network that was too slow and one that was fast enough, where there are both:
        corrections that go all the way can overshoot in turns.
        """
        seen = [(self.predictor.total_us(counts), share) for counts, share in self._seen]
        over = min((one for one in seen if one[1] > 1), default=None)
        under = max((one for one in seen if one[1] <= 1), default=None)
        if over and under and under[0] < over[0]:
            way = math.log(AIM / under[1]) / math.log(over[1] / under[1])
            return float(under[0] * (over[0] / under[0]) ** min(max(way, 0.0), 0.9))
        power = 1.0 if len(seen) <= _FULL_CORRECTIONS else 0.5
        return float(self.predictor.total_us(last) * (AIM / used) ** power)


def open_target(graph: Graph, goal: Goal, current: Path, bench: Bench) -> Target:
    """Measure a network, and every kind of layer in it that the device's table lacks.

    current: the file of the graph's model; of a first round it is the original's.
    """
    answer = bench.layers(goal, current)
    with open_device(goal.device, bench.devices) as device:
        table = open_table(device, bench.options)
        prepare(table, device, bench.options)
        assert table.profiler is not None
        network = read_network(current, answer, graph.cost.length, graph.full, table.profiler)
        fill(table, device, bench.options, network.specs())
    predictor = Predictor(network, table)
    files = {"original": bench.original}
    if current != bench.original:
        files["current"] = current
    whole = profile(files, device=goal.device, options=bench.options, devices=bench.devices)
    first, last = whole.latencies[0], whole.latencies[-1]
    predictor.factor = last.median_ms * 1000 / predictor.total_us(graph.full)
    return Target(goal, predictor, first.median_ms * 1000, _ceilings(graph, goal, first, last))


def _ceilings(graph: Graph, goal: Goal, first: Latency, last: Latency) -> list[Ceiling]:
    """The goal's limits on sizes. first: the original. last: the graph's model, measured."""
    found = []
    for name, most in goal.limits.items():
        allowed = size_mb(name, first, goal.device) ** (1 - goal.part) * most**goal.part
        base, cost = 0.0, partial(_weight_bytes, graph)
        if name == "memory_mb":
            base = (last.peak_memory_mb or 0.0) - (last.model_memory_mb or 0.0)
            cost = partial(
                _bytes, graph, peak_activations(last.path, graph.cost.length, graph.full)
            )
        factor = (size_mb(name, last, goal.device) - base) / cost(graph.full)
        found.append(Ceiling(name, cost, base, allowed, factor))
    return found


def _weight_bytes(graph: Graph, kept: Counts) -> float:
    return 4.0 * graph.cost.params(kept)


def _bytes(graph: Graph, activations: Callable[[Counts], float], kept: Counts) -> float:
    return _weight_bytes(graph, kept) + activations(kept)
