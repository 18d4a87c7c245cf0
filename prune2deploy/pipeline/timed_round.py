"""One round of a recipe whose budget is a time: from the recipe's values to a plan."""

from __future__ import annotations

from typing import Any

from prune2deploy.channels import Graph, Plan
from prune2deploy.devices import load_devices
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import Context, Method
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.planning.timed.plan import plan_in_time
from prune2deploy.planning.timed.target import SIZES, goals_of
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
    section, budget = recipe.prune, recipe.prune.budget
    values = {name: getattr(budget, name) for name in (*TIMES, *SIZES)}
    asked = {name: value for name, value in values.items() if value is not None}
    return plan_in_time(
        context,
        method,
        goals_of(asked, budget.on, number / section.schedule.rounds),
        start,
        devices=load_devices(),
        options=ProfileOptions(threads=recipe.profile.threads, seed=recipe.seed),
        export=exporter(recipe, inputs),
        shares={"macs": budget.macs, "params": budget.params},
        normalize=section.normalize,
        min_channels=section.min_channels,
        round_to=None if section.round_to == "auto" else section.round_to,
    )
