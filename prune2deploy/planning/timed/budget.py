"""Budgets of time: plan by the device's own staircase, measure the whole, correct, plan again."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from prune2deploy import progress
from prune2deploy.budget import Decision, Widths, allowed_counts
from prune2deploy.budget.latency import Counts, Parts, keep_under_times, value_of
from prune2deploy.budget.latency_bound import upper_bound
from prune2deploy.budget.widths import Scores, best
from prune2deploy.channels import Graph, Plan, cut
from prune2deploy.devices import Devices
from prune2deploy.errors import BudgetError
from prune2deploy.latency import ProfileOptions
from prune2deploy.latency.staircase.grid import half_of
from prune2deploy.methods.base import Allocation
from prune2deploy.planning.plan import Allocate
from prune2deploy.planning.timed.target import (
    AIM,
    CLOSE,
    SIZES,
    Attempt,
    Bench,
    Export,
    Goal,
    Target,
    open_target,
)

log = logging.getLogger(__name__)

ROUNDS = 5

_TIGHTER = 0.97
_WHOLE = 10**6  # a budget, where it has to be a whole number
_ON_THE_WAY = (0.9, 1.05)  # what a round that others follow may use of its share
_TRIES_ON_THE_WAY = 2
_WELL = (CLOSE + AIM) / 2  # a budget that is met with less than this used is tried once more

Limit = tuple[Callable[[Counts], float], float]


@dataclass
class TimedPlan:
    """What came of it.

    importance: share of the scores that is kept. gap: by the predicted times, no widths within the
    budgets keep more than that much more; None: not known. attempts: of every round. chosen: the
    measurements of the plan itself, one for each device. step: what widths are multiples of.
    """

    plan: Plan
    importance: float
    step: int
    gap: float | None = None
    attempts: list[list[Attempt]] = field(default_factory=list)
    chosen: list[Attempt] = field(default_factory=list)


def fit_into_time(
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
    original: nn.Module | None = None,
    allocate: Allocate | None = None,
) -> TimedPlan:
    """Choose the widths that keep the most importance in the time that is allowed.

    Args:
        scores: per group, comparable between groups; None: it stays whole.
        goals: all must hold, and all go equally far. Of a goal that goes only part of the way,
            what is measured is near its share, and may be a little over.
        options: of each measurement.
        export: writes a model as the ONNX file that is measured.
        round_to: widths are multiples of it; None: of the device's own steps.
        limits: further costs of the counts, and the most each may be.
        original: the model before earlier cuts, which a speed-up is over; None: the graph's.
        allocate: of a method that distributes a budget itself; asked again after each correction.

    Raises:
        BudgetError: it cannot be reached; the message has the fastest time that can be.
        DeviceError: a device cannot be measured on.
    """
    with tempfile.TemporaryDirectory(prefix="prune2deploy-budget-") as name:
        folder = Path(name)
        current = folder / "current.onnx"
        export(graph.model, current)
        bench = Bench(current, devices, options)
        if original is not None and original is not graph.model:
            bench = Bench(folder / "original.onnx", devices, options)
            export(original, bench.original)
        targets = [open_target(graph, goal, current, bench) for goal in goals]
        step = round_to or max(target.step for target in targets)
        widths = [
            Widths(group.name, allowed_counts(some, min_channels))
            for group, some in zip(
                graph.groups, widths_worth_having(graph, step, round_to), strict=True
            )
        ]
        if any(goal.part < 1 for goal in goals):
            _see_the_end(graph, scores, targets, step, round_to, min_channels)
        search = _Search(graph, scores, widths, targets, bench, export, limits, step, allocate)
        return search.run()


def widths_worth_having(graph: Graph, step: int, round_to: int | None = None) -> list[list[int]]:
    """Per group the counts to choose from, descending.

    Multiples of a device's step, and half a step, which the device may compute in another way;
    where it is not faster its measured time says so. round_to: multiples of it and nothing else.
    """
    half = half_of(step)
    found = []
    for number in range(len(graph.groups)):
        counts = graph.width_steps(number, round_to or step)
        if round_to is None and half is not None:
            counts += [k for k in graph.width_steps(number, half) if k < counts[-1]]
        found.append(counts)
    return found


def _see_the_end(
    graph: Graph,
    scores: Sequence[Scores | None],
    targets: Sequence[Target],
    step: int,
    round_to: int | None,
    min_channels: int | None,
) -> None:
    """Tell before all the training between rounds that their last cannot be reached."""
    floor = min_channels or 1  # a round that is not the first may go below the first's floor
    steps = [allowed_counts(some, floor) for some in widths_worth_having(graph, step, round_to)]
    lowest = _lowest(scores, steps)
    ends = [replace(target, goal=replace(target.goal, part=1.0)) for target in targets]
    for end in ends:
        end.ceilings = [replace(c, allowed_mb=end.goal.limits[c.name]) for c in end.ceilings]
    if any(_over(end, lowest) for end in ends):
        raise BudgetError(_unreachable(ends, lowest))


@dataclass
class _Search:
    """The rounds of planning and measuring."""

    graph: Graph
    scores: Sequence[Scores | None]
    widths: Sequence[Widths]
    targets: Sequence[Target]
    bench: Bench
    export: Export
    limits: Sequence[Limit]
    step: int
    allocate: Allocate | None = None
    history: list[list[Attempt]] = field(default_factory=list)
    best: TimedPlan | None = None
    most: float = 0.0

    def run(self) -> TimedPlan:
        """Go on until the time is met, nothing new is found, or the rounds are used up.

        Where it is met with much of it left, one more round asks for that: a round takes seconds,
        and what is left over is importance.
        """
        last = all(target.goal.part == 1 for target in self.targets)
        tries = ROUNDS if last else _TRIES_ON_THE_WAY
        low, high = (CLOSE, 1.0) if last else _ON_THE_WAY
        tried: set[bytes] = set()
        improving = False
        with progress.task("Fitting into the time") as shown:
            for number in range(1, tries + 1):
                found = self._new(tried)
                if found is None:
                    break
                used = self._measured(number, *found, high if number < tries or last else np.inf)
                shown.advance(1, f"round {number} of at most {tries}: {used:.0%} of the budget")
                if improving or (found[1] == self.graph.full).all():
                    break
                improving = low <= used <= high
                if improving and (used >= _WELL or not last):
                    break
        if self.best is None:
            raise BudgetError(_missed(self.history))
        self.best.attempts = self.history
        self.best.gap = self._gap(self.best.importance)
        return self.best

    def _gap(self, importance: float) -> float | None:
        """What could still be won; not known where there are limits beside the times."""
        if self.allocate is not None or self._all_limits():
            return None
        times = [(target.parts(), target.budget_us) for target in self.targets]
        most = upper_bound(self.scores, self.widths, times)
        return None if most is None else max(0.0, most - importance)

    def _new(self, tried: set[bytes]) -> tuple[Decision, Counts] | None:
        """Widths that have not been measured yet; None where nothing better is left to try."""
        while True:
            try:
                decision, counts = self._allocated() or keep_under_times(
                    self.scores, self.widths, self._times(), self._all_limits()
                )
            except BudgetError as err:
                if self.best is not None:
                    return None
                lowest = _lowest(self.scores, [w.counts for w in self.widths])
                raise BudgetError(_unreachable(self.targets, lowest)) from err
            if counts.tobytes() not in tried:
                tried.add(counts.tobytes())
                return decision, counts
            if self.best is not None:
                return None
            for target in self.targets:
                target.allowed_us *= _TIGHTER

    def _times(self) -> list[tuple[Parts, float]]:
        return [(target.parts(), target.allowed_us) for target in self.targets]

    def _all_limits(self) -> list[Limit]:
        return [*self.limits, *(one for target in self.targets for one in target.limits())]

    def _allocated(self) -> tuple[Decision, Counts] | None:
        """What a method chooses that distributes a budget itself; None: it leaves that to us."""
        if self.allocate is None:
            return None
        times, limits = self._times(), self._all_limits()

        def cost(counts: Counts) -> int:
            shares = [parts.total(counts) / most for parts, most in times]
            return round(_WHOLE * max(shares + [of(counts) / most for of, most in limits]))

        allowed = [w.counts for w in self.widths]
        counts = self.allocate(Allocation(allowed, cost, _WHOLE, cost(self.graph.full)))
        if counts is None:
            return None
        kept = [
            np.arange(w.full) if s is None else best(s, int(n))
            for s, w, n in zip(self.scores, self.widths, counts, strict=True)
        ]
        return Decision(tuple(kept)), np.array([len(some) for some in kept], dtype=np.int64)

    def _measured(self, number: int, decision: Decision, counts: Counts, at_most: float) -> float:
        """Measure widths on all devices and keep them if they are the best; the share used."""
        plan = self.graph.plan(decision.kept)
        small = self.bench.original.with_name("pruned.onnx")
        self.export(cut(self.graph.model, plan), small)
        attempts = [target.attempt(counts, small, self.bench) for target in self.targets]
        self.history.append(attempts)
        for one in attempts:
            log.info("Round %d on %s: %s", number, one.device, one)
        used = max(one.most_used for one in attempts)
        kept = value_of(self.scores, counts)
        # A method that tries networks out goes by something else than importance.
        worth = kept if self.allocate is None else used
        if used <= at_most and (self.best is None or worth > self.most):
            self.best, self.most = TimedPlan(plan, kept, self.step, chosen=attempts), worth
        return used


def _lowest(scores: Sequence[Scores | None], widths: Sequence[Sequence[int]]) -> Counts:
    """The narrowest that may be; what has no scores stays whole."""
    pairs = zip(scores, widths, strict=True)
    return np.array([max(w) if s is None else min(w) for s, w in pairs], dtype=np.int64)


def _over(target: Target, lowest: Counts) -> list[str]:
    """What of a target cannot be reached, in words."""
    told = []
    fastest = target.predictor.total_us(lowest)
    if fastest > target.allowed_us:
        fixed = target.predictor.factor * target.predictor.network.rest_us
        told.append(
            f"on {target.goal.device} {target.budget_us / 1000:.4g} ms were asked for; with "
            f"every group at its narrowest about {fastest / 1000:.4g} ms are left, the "
            f"original takes {target.original_us / 1000:.4g} ms, and {fixed / 1000:.3g} ms of "
            "it do not depend on widths"
        )
    for one in target.ceilings:
        if one.mb(lowest) > one.allowed_mb:
            without = f", {one.base_mb:.4g} MB of it without any network" if one.base_mb else ""
            told.append(
                f"on {target.goal.device} {one.allowed_mb:.4g} MB of {SIZES[one.name]} were asked "
                f"for; with every group at its narrowest about "
                f"{one.mb(lowest):.4g} MB are left{without}"
            )
    return told


def _unreachable(targets: Sequence[Target], lowest: Counts) -> str:
    told = [one for target in targets for one in _over(target, lowest)]
    reason = "; ".join(told) or "the limits beside the time cannot be held"
    return (
        f"The budget cannot be reached: {reason}. Allow more, lower prune.min_channels, "
        "exclude less, or start from a smaller network."
    )


def _missed(history: Sequence[Sequence[Attempt]]) -> str:
    last = "; ".join(f"{one.device}: {one}" for one in history[-1])
    return (
        f"In {len(history)} rounds no network was measured within the budget; the last: {last}. "
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
        f"Time on {one.device}: {one} after {rounds} {plural}; {found.importance:.1%} of the "
        f"importance is kept{more}."
        for one in found.chosen
    ]
