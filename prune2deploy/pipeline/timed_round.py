"""One round of a recipe whose budget is a time: from the recipe's values to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prune2deploy.channels import Graph, Plan
from prune2deploy.devices import load_devices
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import Context, Method
from prune2deploy.pipeline.block_planning import Unit, cost_of
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.outcome import held_back
from prune2deploy.pipeline.planning import channel_scores
from prune2deploy.pipeline.timed_blocks import plan_blocks_for_time
from prune2deploy.pipeline.timed_budget import Limit, notes_of, plan_for_time
from prune2deploy.pipeline.timed_target import SIZES, goals_of
from prune2deploy.recipe import TIMES, Recipe


def timed_plan(
    recipe: Recipe,
    inputs: Inputs,
    context: Context,
    method: Method[Any],
    start: Graph,
    number: int,
) -> Plan:
    """The plan of round `number`, measured on the budget's devices. start: of the original.

    Raises:
        BudgetError: the time cannot be reached.
        DeviceError: a device cannot be measured on.
    """
    section, graph = recipe.prune, context.graph
    budget = section.budget
    part = number / section.schedule.rounds
    asked = {
        unit: value for unit in (*TIMES, *SIZES) if (value := getattr(budget, unit)) is not None
    }
    goals = goals_of(asked, budget.on, part)
    devices = load_devices()
    options = ProfileOptions(threads=recipe.profile.threads, seed=recipe.seed)
    export = exporter(recipe, inputs)
    shares: dict[Unit, float | None] = {"macs": budget.macs, "params": budget.params}
    most = {
        unit: share**part * cost_of(start, unit)
        for unit, share in shares.items()
        if share is not None
    }
    if method.removes_blocks:
        return plan_blocks_for_time(
            context,
            method,
            goals,
            devices=devices,
            options=options,
            export=export,
            limits=most,
            original=start.model,
        )
    costs = {"macs": graph.cost.macs, "params": graph.cost.params}
    limits: list[Limit] = [(costs[unit], limit) for unit, limit in most.items()]
    found = plan_for_time(
        graph,
        channel_scores(context, method, section.normalize),
        goals,
        devices=devices,
        options=options,
        export=export,
        min_channels=section.min_channels,
        round_to=None if section.round_to == "auto" else section.round_to,
        limits=limits,
        original=start.model,
    )
    notes = [*notes_of(found), *held_back(graph.frozen)]
    if type(method).allocate is not Method.allocate:
        notes.append(
            f"{method.name} would choose how many channels each group keeps for a budget of macs; "
            "for one of time its scores were used, and the device's times."
        )
    return replace(found.plan, notes=tuple(notes))
