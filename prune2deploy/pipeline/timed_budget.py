"""Budgets of time: plan by the device's own staircase, measure the whole, correct, plan again."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from prune2deploy import progress
from prune2deploy.budget import Decision, Widths, allowed_counts
from prune2deploy.budget.latency import Counts, Parts, keep_under_times, upper_bound, value_of
from prune2deploy.budget.widths import Scores
from prune2deploy.channels import Graph, Plan, cut
from prune2deploy.devices import Devices, open_device
from prune2deploy.errors import BudgetError
from prune2deploy.latency import ProfileOptions, ProfileResult, profile, profile_layers
from prune2deploy.latency.staircase.measure import fill, open_table
from prune2deploy.latency.staircase.network import Predictor, read_network

log = logging.getLogger(__name__)

ROUNDS = 5
CLOSE = 0.95
"""A time between this share of its budget and the budget has met it."""

_AIM = (1 + CLOSE) / 2
_LAYERS_TIME_S = 2.0
_FULL_CORRECTIONS = 2

Export = Callable[[nn.Module, Path], object]
Limit = tuple[Callable[[Counts], int], float]


@dataclass(frozen=True)
class Goal:
    """What is asked for on one device: a median in ms, or a speed-up over the original."""

    device: str
    latency_ms: float | None = None
    speedup: float | None = None


@dataclass
class Predicted:
    """One device with what is known of its times. original_us: measured, whole, by the clock."""

    goal: Goal
    predictor: Predictor
    original_us: float

    @property
    def budget_us(self) -> float:
        """The time that is allowed."""
        if self.goal.latency_ms is not None:
            return self.goal.latency_ms * 1000
        assert self.goal.speedup is not None
        return self.original_us / self.goal.speedup

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


@dataclass(frozen=True)
class Attempt:
    """One round on one device, times in ms. used: of the budget, at the unfavourable end."""

    device: str
    predicted_ms: float
    measured_ms: float
    budget_ms: float
    used: float


@dataclass
class TimedPlan:
    """What came of it.

    importance: share of the scores that is kept. gap: by the predicted times, no widths within the
    budgets keep more than that much more; None: not known. attempts: of every round. chosen: the
    measurements of the plan itself, one for each device.
    """

    plan: Plan
    importance: float
    gap: float | None = None
    attempts: list[list[Attempt]] = field(default_factory=list)
    chosen: list[Attempt] = field(default_factory=list)


def plan_for_time(
    graph: Graph,
    scores: Sequence[Scores | None],
    goals: Sequence[Goal],
    *,
    devices: Devices,
    options: ProfileOptions,
    export: Export,
    min_channels: int | None = None,
    round_to: int | None = None,
    limits: Sequence[Limit] = (),
) -> TimedPlan:
    """Choose the widths that keep the most importance in the time that is allowed.

    Args:
        scores: per group, comparable between groups; None: it stays whole.
        goals: all must hold.
        options: of each measurement.
        export: writes a model as the ONNX file that is measured.
        round_to: widths are multiples of it; None: of the device's own steps.
        limits: further costs of the counts, and the most each may be.

    Raises:
        BudgetError: it cannot be reached; the message has the fastest time that can be.
        DeviceError: a device cannot be measured on.
    """
    with tempfile.TemporaryDirectory(prefix="prune2deploy-budget-") as name:
        folder = Path(name)
        original = folder / "original.onnx"
        export(graph.model, original)
        targets = [predicted_time(graph, goal, original, devices, options) for goal in goals]
        step = round_to or max(_step(target) for target in targets)
        widths = [
            Widths(group.name, allowed_counts(graph.width_steps(n, step), min_channels))
            for n, group in enumerate(graph.groups)
        ]
        return _rounds(graph, scores, widths, targets, original, devices, options, export, limits)


def _step(target: Predicted) -> int:
    return target.predictor.table.step or 1


def predicted_time(
    graph: Graph, goal: Goal, original: Path, devices: Devices, options: ProfileOptions
) -> Predicted:
    """Measure the original, and every kind of layer that the table lacks."""
    short = replace(options, min_time_s=_LAYERS_TIME_S)
    found = profile_layers(
        {"original": original}, device=goal.device, options=short, devices=devices
    )
    network = read_network(original, found.answer, graph.cost.length, graph.full)
    with open_device(goal.device, devices) as device:
        table = open_table(device, options)
        fill(table, device, options, network.specs())
    predictor = Predictor(network, table)
    whole = profile({"original": original}, device=goal.device, options=options, devices=devices)
    original_us = whole.latencies[0].median_ms * 1000
    predictor.factor = original_us / predictor.total_us(graph.full)
    return Predicted(goal, predictor, original_us)


def _rounds(
    graph: Graph,
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    targets: Sequence[Predicted],
    original: Path,
    devices: Devices,
    options: ProfileOptions,
    export: Export,
    limits: Sequence[Limit],
) -> TimedPlan:
    best: TimedPlan | None = None
    history: list[list[Attempt]] = []
    with progress.task("Fitting into the time", ROUNDS) as shown:
        for number in range(1, ROUNDS + 1):
            decision, counts = _solved(scores, widths, targets, limits)
            plan = graph.plan(decision.kept)
            small = original.with_name("pruned.onnx")
            export(cut(graph.model, plan), small)
            # Corrections that go all the way can overshoot in turns: later ones go half of it.
            part = 1.0 if number <= _FULL_CORRECTIONS else 0.5
            attempts = [
                _attempt(target, counts, original, small, devices, options, part)
                for target in targets
            ]
            history.append(attempts)
            for one in attempts:
                log.info("Round %d on %s: %s", number, one.device, told(one))
            used = max(one.used for one in attempts)
            kept = value_of(scores, counts)
            if used <= 1 and (best is None or kept > best.importance):
                best = TimedPlan(plan, kept, chosen=attempts)
            shown.advance(1, f"{used:.0%} of the time")
            if CLOSE <= used <= 1 or _whole(counts, graph):
                break
    if best is None:
        raise BudgetError(_missed(history))
    best.attempts = history
    most = upper_bound(scores, widths, [(t.parts(), t.budget_us) for t in targets])
    best.gap = None if most is None else max(0.0, most - best.importance)
    return best


def _whole(counts: Counts, graph: Graph) -> bool:
    return bool((counts == graph.full).all())


def _solved(
    scores: Sequence[Scores | None],
    widths: Sequence[Widths],
    targets: Sequence[Predicted],
    limits: Sequence[Limit],
) -> tuple[Decision, Counts]:
    try:
        return keep_under_times(
            scores, widths, [(t.parts(), t.budget_us * _AIM) for t in targets], limits
        )
    except BudgetError as err:
        raise BudgetError(_unreachable(widths, targets)) from err


def _unreachable(widths: Sequence[Widths], targets: Sequence[Predicted]) -> str:
    lowest = np.array([min(w.counts) for w in widths], dtype=np.int64)
    told = []
    for target in targets:
        fastest = target.predictor.total_us(lowest)
        if fastest > target.budget_us * _AIM:
            fixed = target.predictor.factor * target.predictor.network.rest_us
            told.append(
                f"on {target.goal.device} {target.budget_us / 1000:.4g} ms were asked for; with "
                f"every group at its narrowest about {fastest / 1000:.4g} ms are left, the "
                f"original takes {target.original_us / 1000:.4g} ms, and {fixed / 1000:.3g} ms of "
                "it do not depend on widths"
            )
    reason = "; ".join(told) or "the limits beside the time cannot be held"
    return (
        f"The time cannot be reached: {reason}. Allow more time, lower prune.min_channels, "
        "exclude less, or start from a smaller network."
    )


def _attempt(
    target: Predicted,
    counts: Counts,
    original: Path,
    small: Path,
    devices: Devices,
    options: ProfileOptions,
    part: float,
) -> Attempt:
    """Measure the whole cut network, and correct the prediction by what is seen."""
    predicted = target.predictor.total_us(counts)
    result = profile(
        {"original": original, "pruned": small},
        device=target.goal.device,
        options=options,
        devices=devices,
    )
    measured = result.latencies[1].median_ms * 1000
    used = _used(target.goal, result)
    if target.goal.speedup is not None:
        # Both in turns: what slows the machine down slows both down.
        measured = target.original_us / result.speedups[0].ratio
    target.predictor.factor *= (measured / predicted) ** part
    return Attempt(
        target.goal.device, predicted / 1000, measured / 1000, target.budget_us / 1000, used
    )


def _used(goal: Goal, result: ProfileResult) -> float:
    """The share of what is allowed that is used, at the unfavourable end of the interval."""
    if goal.speedup is not None:
        return goal.speedup / result.speedups[0].low
    assert goal.latency_ms is not None
    pruned = result.latencies[1]
    return (pruned.median_ci95_ms or (0.0, float("inf")))[1] / goal.latency_ms


def told(one: Attempt) -> str:
    """One attempt in words."""
    return (
        f"predicted {one.predicted_ms:.4g} ms, measured {one.measured_ms:.4g} ms, allowed "
        f"{one.budget_ms:.4g} ms ({one.used:.1%} used)"
    )


def _missed(history: Sequence[Sequence[Attempt]]) -> str:
    last = "; ".join(f"{one.device}: {told(one)}" for one in history[-1])
    return (
        f"In {len(history)} rounds no network was measured within the time; the last: {last}. "
        "If the device is busy or throttles, see 'prune2deploy devices check NAME'; else allow "
        "a little more time."
    )


def notes_of(found: TimedPlan) -> list[str]:
    """What a summary says of the rounds."""
    rounds = len(found.attempts)
    plural = "round" if rounds == 1 else "rounds"
    more = (
        "" if found.gap is None else f"; at most {found.gap:.1%} of the importance more would fit"
    )
    return [
        f"Time on {one.device}: {told(one)} after {rounds} {plural}; {found.importance:.1%} of the "
        f"importance is kept{more}."
        for one in found.chosen
    ]


def goals_of(asked: Mapping[str, float], names: Sequence[str]) -> list[Goal]:
    """The goals of a recipe's budget: the same on each of its devices."""
    return [
        Goal(name, latency_ms=asked.get("latency_ms"), speedup=asked.get("speedup"))
        for name in names
    ]
