"""Between the stages: what a search leaves on disk, and the network of one point of its front."""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file, save_file
from torch import nn

from prune2deploy.channels import cut, load_weights, save_weights, trace
from prune2deploy.devices import load_devices
from prune2deploy.errors import BudgetError
from prune2deploy.latency import ProfileOptions, profile
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.deploy import exporter
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.pruning import (
    Checkpoints,
    Pruned,
    checked_cut,
    compensated,
    recalibrate,
    training_images,
)
from prune2deploy.pipeline.search.trials import Ranked, rank, search
from prune2deploy.planning.outcome import held_back, reached
from prune2deploy.planning.plan import edits_weights, make_method, prepare
from prune2deploy.planning.timed.target import SIZES, Goal
from prune2deploy.recipe import Recipe
from prune2deploy.search import FrontPoint, SearchRecord, best_within, knee, read_record

log = logging.getLogger(__name__)

_MEASURED = 5
"""Points that are measured for a budget of time."""


def search_front(
    recipe: Recipe, inputs: Inputs, model: nn.Module, folder: RunFolder, checkpoints: Checkpoints
) -> tuple[SearchRecord, list[str]]:
    """Search, and keep what the networks of the front are made from.

    Returns:
        The record, and the names of the files that were written.
    """
    ranked = rank(recipe, inputs, model, checkpoints)
    record = search(recipe, inputs, ranked, folder.path, folder.others)
    names = [files.SCORES]
    scores = {
        group.name: score
        for group, score in zip(ranked.graph.groups, ranked.scores, strict=True)
        if score is not None
    }
    save_file(scores, folder.file(files.SCORES))
    if recipe.prune.train is not None:
        save_weights(ranked.graph.model, folder.file(files.TRAINED))
        names.append(files.TRAINED)
    return record, names


def prune_to_point(
    recipe: Recipe, inputs: Inputs, model: nn.Module, folder: RunFolder
) -> tuple[Pruned, tuple[int, str]]:
    """Cut the network of a point of the front: of the one asked for, or the best in the budget.

    Returns:
        What came of it; the number of the point, and why it was that one.

    Raises:
        SearchError: there is no such point, or none holds the budget.
        BudgetError: none was measured within a budget of time.
        ModelError: the cut does not give the zeroed model's numbers.
    """
    section = recipe.prune
    record = read_record(folder.file(files.SEARCH))
    start = trace(model, inputs.example, section.exclude)
    graph = start
    if section.train is not None:
        model = copy.deepcopy(model)
        load_weights(model, folder.file(files.TRAINED))
        graph = trace(model, inputs.example, section.exclude)
    kept = load_file(folder.file(files.SCORES))
    ranked = Ranked(graph, [kept.get(group.name) for group in graph.groups])
    point, reason = choose(recipe, inputs, record, ranked)
    log.info("Point %s of the front, %s", record.told(point), reason)
    notes = [
        f"Point {point.number} of {len(record.front)} of the front, {reason}: "
        f"{record.metric} {point.accuracy:.2f} before training, {record.amount(point.cost)}.",
    ]
    step = ranked.plan(point.widths)
    notes.append(reached(graph, graph.kept(step), start, "", None))
    step = replace(step, notes=(*notes, *held_back(graph.frozen)))
    method = make_method(section.method, section.options)
    if edits_weights(method):
        images = functools.partial(training_images, recipe, inputs)
        graph = replace(graph, model=prepare(graph, step, method, images=images))
    if section.compensate:
        graph = compensated(recipe, inputs, graph, step)
    small = checked_cut(graph, step)
    if section.recalibrate:
        recalibrate(recipe, inputs, small)
    return Pruned(small, step, start), (point.number, reason)


def choose(
    recipe: Recipe, inputs: Inputs, record: SearchRecord, ranked: Ranked
) -> tuple[FrontPoint, str]:
    """The point of the front that a recipe finishes, and why it is that one."""
    section, full = recipe.prune, ranked.graph.full
    assert section.search is not None
    if section.search.point is not None:
        return record.point(section.search.point), "asked for"
    budget = section.budget
    most = {
        key: share * cost(full)
        for key, share, cost in (
            ("macs", budget.macs, ranked.graph.cost.macs),
            ("params", budget.params, ranked.graph.cost.params),
        )
        if share is not None
    }
    if not budget.asked():
        return knee(record.front, record.higher_is_better), "the knee of the front"
    limits = {name: getattr(budget, name) for name in SIZES}
    named = {**budget.asked(), **limits}
    told = " and ".join(f"{unit}: {asked}" for unit, asked in named.items() if asked is not None)

    def holds(point: FrontPoint) -> bool:
        return all(getattr(point, key) <= limit for key, limit in most.items())

    if budget.timed:
        return _measured_within(recipe, inputs, record, ranked, holds, told)
    return best_within(record.front, holds, told), f"the best within {told}"


def _measured_within(
    recipe: Recipe,
    inputs: Inputs,
    record: SearchRecord,
    ranked: Ranked,
    holds: Callable[[FrontPoint], bool],
    told: str,
) -> tuple[FrontPoint, str]:
    """The best point that a measurement of the whole network shows within the time.

    Each measurement corrects what is expected of the others.
    """
    section = recipe.prune
    assert section.search is not None
    device, budget = section.search.on, section.budget
    values = {name: getattr(budget, name) for name in SIZES}
    limits = {name: value for name, value in values.items() if value is not None}
    goal = Goal(device, budget.latency_ms, budget.speedup, limits=limits)
    export, devices = exporter(recipe, inputs), load_devices()
    options = ProfileOptions(threads=recipe.profile.threads, seed=recipe.seed)
    factor, tried = 1.0, []
    with tempfile.TemporaryDirectory(prefix="prune2deploy-point-") as name:
        original, small = Path(name) / "original.onnx", Path(name) / "pruned.onnx"
        export(ranked.graph.model, original)
        left = [point for point in record.front if holds(point)]
        for _ in range(_MEASURED):
            allowed = budget.latency_ms or record.original.cost / (budget.speedup or 1)
            fitting = [point for point in left if point.cost * factor <= allowed]
            if not fitting:
                break
            point = fitting[-1]
            export(cut(ranked.graph.model, ranked.plan(point.widths)), small)
            result = profile(
                {"original": original, "pruned": small},
                device=device,
                options=options,
                devices=devices,
            )
            faster, now = result.speedups[0], result.latencies[1]
            measured = f"{now.median_ms:.4g} ms, {faster.ratio:.3g} times faster"
            sizes = goal.sizes(result)
            used, larger = goal.used(result), max([size.share for size in sizes.values()] or [0.0])
            measured += "".join(f", {SIZES[name]} {size}" for name, size in sizes.items())
            if max(used, larger) <= 1:
                return point, f"the best that was measured within {told} on {device} ({measured})"
            tried.append(f"point {point.number}: {measured}")
            if used > 1:
                factor = max(factor, used * allowed / point.cost)
            most = point.params / max(larger, 1.0)
            left = [one for one in left if one is not point and one.params <= most]
    raise BudgetError(
        f"No point of the front was measured within {told} on {device}; "
        f"{'; '.join(tried) or 'none is expected to be'}. Allow more time, or let the search look "
        "at smaller networks (prune.search.shares)."
    )
