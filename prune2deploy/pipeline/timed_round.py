"""One round of a recipe whose budget is a time: from the recipe's values to a plan."""

from __future__ import annotations

from typing import Any

from prune2deploy.channels import Graph, Plan
from prune2deploy.devices import load_devices
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import Context, Method
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.timed_plan import goals_from, plan_in_time
from prune2deploy.recipe import Recipe


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
    section = recipe.prune
    return plan_in_time(
        context,
        method,
        goals_from(section.budget, number / section.schedule.rounds),
        start,
        devices=load_devices(),
        options=ProfileOptions(threads=recipe.profile.threads, seed=recipe.seed),
        export=exporter(recipe, inputs),
        shares={"macs": section.budget.macs, "params": section.budget.params},
        normalize=section.normalize,
        min_channels=section.min_channels,
        round_to=None if section.round_to == "auto" else section.round_to,
    )
