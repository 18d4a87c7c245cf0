"""A budget of time on one device: what is asked for, and what is known of the times there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from prune2deploy.budget.latency import Counts, Parts
from prune2deploy.channels import Graph
from prune2deploy.devices import Devices, open_device
from prune2deploy.latency import ProfileOptions, ProfileResult, profile, profile_layers
from prune2deploy.latency.staircase.measure import fill, open_table
from prune2deploy.latency.staircase.network import Predictor, read_network

CLOSE = 0.95
"""A time between this share of its budget and the budget has met it."""

AIM = (1 + CLOSE) / 2
LAYERS_TIME_S = 2.0
_FULL_CORRECTIONS = 2


@dataclass(frozen=True)
class Goal:
    """What is asked for on one device: a median in ms, or a speed-up over the original.

    part: of several rounds, how far this one goes; each takes the same share of the time.
    """

    device: str
    latency_ms: float | None = None
    speedup: float | None = None
    part: float = 1.0

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
        if self.speedup is not None:
            return float(self.speedup**self.part / result.speedups[0].low)
        original, other = result.latencies
        high = (other.median_ci95_ms or (0.0, math.inf))[1]
        return high * 1000 / self.budget_us(original.median_ms * 1000)


def goals_of(asked: Mapping[str, float], names: Sequence[str], part: float = 1.0) -> list[Goal]:
    """The goals of a recipe's budget: the same on each of its devices."""
    return [Goal(name, asked.get("latency_ms"), asked.get("speedup"), part) for name in names]


@dataclass(frozen=True)
class Attempt:
    """One round on one device, times in ms. used: of the budget, at the unfavourable end."""

    device: str
    predicted_ms: float
    measured_ms: float
    budget_ms: float
    used: float

    def __str__(self) -> str:
        return (
            f"predicted {self.predicted_ms:.4g} ms, measured {self.measured_ms:.4g} ms, allowed "
            f"{self.budget_ms:.4g} ms ({self.used:.1%} used)"
        )


@dataclass(frozen=True)
class Bench:
    """How times are measured. original: the file that networks are measured beside."""

    original: Path
    devices: Devices
    options: ProfileOptions

    def measure(self, goal: Goal, path: Path, original_us: float) -> tuple[float, float]:
        """Return a network's time in µs and the share of the goal that it uses."""
        result = profile(
            {"original": self.original, "pruned": path},
            device=goal.device,
            options=self.options,
            devices=self.devices,
        )
        measured = result.latencies[1].median_ms * 1000
        if goal.speedup is not None:
            # Both in turns: what slows the machine down slows both down.
            measured = original_us / result.speedups[0].ratio
        return measured, goal.used(result)


@dataclass
class Target:
    """One device with what is known of its times.

    predictor: of the network that is cut. original_us: what the original takes, whole, by the
    clock. allowed_us: what the solver may use up by the prediction; corrections move it.
    """

    goal: Goal
    predictor: Predictor
    original_us: float
    allowed_us: float = field(init=False)
    _seen: list[tuple[float, float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.allowed_us = self.budget_us * AIM

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

    def attempt(self, counts: Counts, small: Path, bench: Bench) -> Attempt:
        """Measure the whole cut network, and correct the prediction by what is seen."""
        predicted = self.predictor.total_us(counts)
        measured, used = bench.measure(self.goal, small, self.original_us)
        plain = predicted / self.predictor.factor
        self.predictor.factor = measured / plain
        self._seen.append((plain, used))
        self.allowed_us = self.predictor.factor * self._next(plain, used)
        return Attempt(
            self.goal.device, predicted / 1000, measured / 1000, self.budget_us / 1000, used
        )

    def _next(self, plain: float, used: float) -> float:
        """The uncorrected time to ask for next.

        Between a network that was too slow and one that was fast enough, where there are both:
        corrections that go all the way can overshoot in turns.
        """
        over = min((seen for seen in self._seen if seen[1] > 1), default=None)
        under = max((seen for seen in self._seen if seen[1] <= 1), default=None)
        if over and under and under[0] < over[0]:
            way = math.log(AIM / under[1]) / math.log(over[1] / under[1])
            return float(under[0] * (over[0] / under[0]) ** min(max(way, 0.0), 0.9))
        power = 1.0 if len(self._seen) <= _FULL_CORRECTIONS else 0.5
        return float(plain * (AIM / used) ** power)


def open_target(graph: Graph, goal: Goal, current: Path, bench: Bench) -> Target:
    """Measure a network, and every kind of layer in it that the device's table lacks.

    current: the file of the graph's model; of a first round it is the original's.
    """
    short = replace(bench.options, min_time_s=LAYERS_TIME_S)
    found = profile_layers(
        {"current": current}, device=goal.device, options=short, devices=bench.devices
    )
    network = read_network(current, found.answer, graph.cost.length, graph.full)
    with open_device(goal.device, bench.devices) as device:
        table = open_table(device, bench.options)
        fill(table, device, bench.options, network.specs())
    predictor = Predictor(network, table)
    files = {"original": bench.original}
    if current != bench.original:
        files["current"] = current
    whole = profile(files, device=goal.device, options=bench.options, devices=bench.devices)
    current_us = whole.latencies[-1].median_ms * 1000
    predictor.factor = current_us / predictor.total_us(graph.full)
    return Target(goal, predictor, whole.latencies[0].median_ms * 1000)
