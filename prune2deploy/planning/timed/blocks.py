"""Budgets of time for methods that remove whole residual blocks.

Blocks go in the order of their scores, so all that is to be found is how many. What a block takes
is in the network's profile; how many must go is proven by the clock.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prune2deploy import progress
from prune2deploy.channels import Graph, Plan, cut
from prune2deploy.channels.blocks import Block, plan_without
from prune2deploy.devices import Devices
from prune2deploy.errors import BudgetError
from prune2deploy.latency import ProfileOptions, profile, profile_layers
from prune2deploy.latency.layer_names import read_graph
from prune2deploy.latency.layers import times_of_nodes
from prune2deploy.methods import Context, Method
from prune2deploy.planning.blocks import (
    Unit,
    checked_plan,
    cost_of,
    ranked_blocks,
    traced_without,
)
from prune2deploy.planning.timed.target import LAYERS_TIME_S, SIZES, Attempt, Bench, Export, Goal

log = logging.getLogger(__name__)

_TRIES = 6
_FACTORS = (0.2, 5.0)  # what a block takes away, beside what the profile has for it


@dataclass
class _Target:
    """One device. current_us: the network now. saved_us: what it has for each block, in order."""

    goal: Goal
    original_us: float
    current_us: float
    saved_us: Sequence[float]
    factor: float = 1.0

    @property
    def budget_us(self) -> float:
        return self.goal.budget_us(self.original_us)

    def predicted_us(self, gone: int) -> float:
        return self.current_us - self.factor * sum(self.saved_us[:gone])

    def attempt(self, gone: int, path: Path, bench: Bench) -> Attempt:
        """Measure, and correct what a block is thought to take."""
        predicted = self.predicted_us(gone)
        found = bench.measure(self.goal, path, self.original_us, predicted)
        saved = sum(self.saved_us[:gone])
        if saved > 0:
            factor = (self.current_us - found.measured_ms * 1000) / saved
            self.factor = min(max(factor, _FACTORS[0]), _FACTORS[1])
        return found


def plan_blocks_for_time(
    context: Context,
    method: Method[Any],
    goals: Sequence[Goal],
    *,
    devices: Devices,
    options: ProfileOptions,
    export: Export,
    limits: Mapping[Unit, float] | None = None,
    original: nn.Module | None = None,
) -> Plan:
    """Remove the blocks with the lowest scores until every time holds, as few as possible.

    Args:
        goals, export, original: as for `fit_into_time`.
        limits: the most MACs or parameters that may be left.

    Raises:
        BudgetError: without any block that can go it still takes longer, or a limit does not hold.
        MethodError: there are no blocks, or a score is not a number.
        DeviceError: a device cannot be measured on.
    """
    graph = context.graph
    blocks = ranked_blocks(context, method)
    fewest = _fewest(graph, blocks, limits or {})
    with tempfile.TemporaryDirectory(prefix="prune2deploy-budget-") as name:
        folder = Path(name)
        current = folder / "current.onnx"
        export(graph.model, current)
        bench = Bench(current, devices, options)
        if original is not None and original is not graph.model:
            bench = Bench(folder / "original.onnx", devices, options)
            export(original, bench.original)
        targets = [_opened(goal, blocks, current, bench) for goal in goals]
        found = _search(graph, blocks, targets, bench, export, fewest)
    gone, attempts, fewer = found
    names = ", ".join(block.name for block in blocks[:gone]) or "none"
    notes = [f"Blocks removed: {names}."]
    notes += [f"Time on {one.device}: {one}." for one in attempts]
    notes += [
        f"With one block fewer, on {one.device}: {one}." for one in fewer if one.most_used > 1
    ]
    return checked_plan(graph, blocks[:gone], notes)


def _fewest(graph: Graph, blocks: Sequence[Block], limits: Mapping[Unit, float]) -> int:
    """How many blocks must go for the limits alone."""
    for gone in range(len(blocks) + 1):
        left = traced_without(graph, blocks[:gone]) if gone else graph
        over = {u: cost_of(left, u) / most for u, most in limits.items() if cost_of(left, u) > most}
        if not over:
            return gone
    told = ", ".join(f"{unit} are {ratio:.2f} times the limit" for unit, ratio in over.items())
    raise BudgetError(
        f"Without all {len(blocks)} blocks that can go {told}. Raise the limit, or let the method "
        "remove channels (structure: channel)."
    )


def _opened(goal: Goal, blocks: Sequence[Block], current: Path, bench: Bench) -> _Target:
    """Measure the network as it is, and look up what its blocks take."""
    short = replace(bench.options, min_time_s=LAYERS_TIME_S)
    layers = profile_layers(
        {"current": current}, device=goal.device, options=short, devices=bench.devices
    )
    nodes = read_graph(current)
    times = times_of_nodes(nodes, layers.answer["models"][0]["nodes"])
    saved = [
        sum(us for place, us in times.items() if _inside(nodes.nodes[place].layer, block))
        for block in blocks
    ]
    files = {"original": bench.original}
    if current != bench.original:
        files["current"] = current
    whole = profile(files, device=goal.device, options=bench.options, devices=bench.devices)
    first, last = whole.latencies[0].median_ms * 1000, whole.latencies[-1].median_ms * 1000
    return _Target(goal, first, last, saved)


def _inside(layer: str, block: Block) -> bool:
    return layer == block.name or layer.startswith(f"{block.name}.")


def _search(
    graph: Graph,
    blocks: Sequence[Block],
    targets: Sequence[_Target],
    bench: Bench,
    export: Export,
    fewest: int,
) -> tuple[int, list[Attempt], list[Attempt]]:
    """Find the fewest blocks without which all times hold.

    Returns:
        Their number, its measurements, and those of one block fewer (where it was measured).
    """
    measured: dict[int, list[Attempt]] = {}
    too_few, enough = fewest - 1, None
    with progress.task("Removing blocks until the time is met") as shown:
        for number in range(1, _TRIES + 1):
            gone = _guess(targets, len(blocks))
            if enough is None and number == _TRIES - 1:
                gone = len(blocks)  # the guesses were of no use
            last = len(blocks) if enough is None else enough - 1
            gone = min(max(gone, too_few + 1), last)
            path = bench.original.with_name("pruned.onnx")
            export(cut(graph.model, plan_without(blocks[:gone])), path)
            measured[gone] = [target.attempt(gone, path, bench) for target in targets]
            for one in measured[gone]:
                log.info("%d blocks removed, on %s: %s", gone, one.device, one)
            used = max(one.most_used for one in measured[gone])
            shown.advance(1, f"{gone} blocks removed: {used:.0%} of the time")
            if used <= 1:
                enough = gone
            elif gone == len(blocks):
                raise BudgetError(_unreachable(measured[gone], len(blocks)))
            else:
                too_few = gone
            if enough is not None and enough - too_few <= 1:
                break
    assert enough is not None  # the last guess but one is all of them
    return enough, measured[enough], measured.get(enough - 1, [])


def _guess(targets: Sequence[_Target], count: int) -> int:
    """How many blocks must go by what is thought now."""
    for gone in range(count):
        if all(target.predicted_us(gone) <= target.budget_us for target in targets):
            return gone
    return count


def _unreachable(attempts: Sequence[Attempt], count: int) -> str:
    told = []
    for one in attempts:
        left = [(f"{one.measured_ms:.4g} ms", f"{one.budget_ms:.4g} ms", one.used)]
        left += [
            (f"{size.mb:.4g} MB of {SIZES[name]}", f"{size.allowed_mb:.4g} MB", size.share)
            for name, size in one.sizes.items()
        ]
        told += [
            f"on {one.device} {found} are left, and {asked} were asked for"
            for found, asked, share in left
            if share > 1
        ]
    return (
        f"The budget cannot be reached: without all {count} blocks that can go, {'; '.join(told)}. "
        "Allow more, or let the method remove channels (structure: channel)."
    )
