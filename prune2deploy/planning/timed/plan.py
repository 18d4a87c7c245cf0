"""Plans for a time: of every method, from a recipe or from Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from prune2deploy.channels import Graph, Plan
from prune2deploy.devices import Devices
from prune2deploy.errors import BudgetError, ExportError
from prune2deploy.export import export_model_file
from prune2deploy.latency import ProfileOptions
from prune2deploy.methods import Context, Method
from prune2deploy.methods.base import Images, Judge, Losses
from prune2deploy.planning.blocks import Unit, cost_of
from prune2deploy.planning.outcome import held_back
from prune2deploy.planning.plan import (
    as_source,
    check_widths,
    make_method,
    require_groups,
)
from prune2deploy.planning.sums import summable_scores
from prune2deploy.planning.timed.blocks import plan_blocks_for_time
from prune2deploy.planning.timed.budget import Limit, fit_into_time, notes_of
from prune2deploy.planning.timed.devices import devices_for_times
from prune2deploy.planning.timed.target import SIZES, Export, Goal, goals_of


def plan_for_time(
    graph: Graph,
    method: str | Method[Any] = "l1",
    *,
    latency_ms: float | None = None,
    speedup: float | None = None,
    on: str | Sequence[str] = "local",
    limits: Mapping[str, float] | None = None,
    round_to: int | Literal["auto"] = "auto",
    min_channels: int | None = None,
    normalize: str | None = None,
    images: Iterable[Tensor] | Images | None = None,
    losses: Losses | None = None,
    judge: Judge | None = None,
    original: Graph | None = None,
    export: Export | None = None,
    threads: int | None = None,
    **options: Any,
) -> Plan:
    """Decide which channels (or blocks) stay, so that devices are measured to take a time.

    The layers' times are measured on each device where its table lacks them, which takes minutes
    for a large network once; then whole networks, at most five.

    Args:
        graph, method, min_channels, normalize, images, losses, judge, options: as for
            `prune2deploy.plan`.
        latency_ms: the median that is allowed. speedup: or how many times faster than the
            original it must be, at the low end of its interval.
        on: names of devices.yaml, or local; all must hold.
        limits: the most of macs, params (shares of the original), size_mb (the ONNX file),
            memory_mb (the peak of a process that runs it), in 10^6 bytes.
        round_to: widths are multiples of it; auto: of the devices' own steps.
        original: graph of the model before earlier cuts, which a speed-up is over.
        export: writes a model as the ONNX file that is measured; None: as the command does it,
            for a model of one image tensor.
        threads: of the runtime; None: as the device's entry says.

    Raises:
        BudgetError: the budget is malformed or cannot be reached.
        MethodError: unknown method or option, or nothing to score.
        DeviceError: a device is not known, or cannot be measured on.
        ExportError: the model does not take one image tensor, or cannot be exported.
    """
    times = {"latency_ms": latency_ms, "speedup": speedup}
    asked = {name: value for name, value in times.items() if value is not None} | dict(limits or {})
    names = (on,) if isinstance(on, str) else tuple(on)
    _check(asked, names)
    chosen = make_method(method, options) if isinstance(method, str) else method
    if chosen.granularity != "channel":
        raise BudgetError(f"{chosen.name} keeps single weights, which makes no layer faster.")
    if round_to != "auto":
        check_widths(round_to, min_channels)
    start = original or graph
    return plan_in_time(
        Context(graph, as_source(images), losses, judge),
        chosen,
        goals_of(asked, names),
        start,
        devices=devices_for_times("on", names),
        options=ProfileOptions(threads=threads),
        export=export or _exporter(graph),
        shares={"macs": asked.get("macs"), "params": asked.get("params")},
        normalize=normalize,
        min_channels=min_channels,
        round_to=None if round_to == "auto" else round_to,
    )


def plan_in_time(
    context: Context,
    method: Method[Any],
    goals: Sequence[Goal],
    start: Graph,
    *,
    devices: Devices,
    options: ProfileOptions,
    export: Export,
    shares: Mapping[Unit, float | None],
    normalize: str | None,
    min_channels: int | None,
    round_to: int | None,
) -> Plan:
    """The plan by a method's scores, or without some of its blocks.

    Args:
        goals: all go equally far. start: graph of the original.
        shares: of the original's MACs and parameters, the most that may be left.

    Raises:
        BudgetError: the time cannot be reached.
        DeviceError: a device cannot be measured on.
    """
    graph, part = context.graph, goals[0].part
    require_groups(graph)
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
    scores = summable_scores(context, method, normalize)
    allocate = partial(method.allocate, context, scores)
    try:
        found = fit_into_time(
            graph,
            scores,
            goals,
            devices=devices,
            options=options,
            export=export,
            min_channels=min_channels,
            round_to=round_to,
            limits=limits,
            original=start.model,
            allocate=None if type(method).allocate is Method.allocate else allocate,
        )
    except BudgetError as err:
        raise BudgetError(" ".join([str(err), *held_back(graph.frozen)])) from err
    return replace(found.plan, notes=(*notes_of(found), *held_back(graph.frozen)))


def _check(asked: Mapping[str, float], on: Sequence[str]) -> None:
    """The rules of a recipe, where values come from Python."""
    known = ("macs", "params", *SIZES)
    times = [name for name in ("latency_ms", "speedup") if name in asked]
    strange = [name for name in asked if name not in (*times, *known)]
    if strange:
        raise BudgetError(f"limits has {', '.join(strange)}; known: {', '.join(known)}.")
    if len(times) != 1:
        raise BudgetError("Give one of latency_ms and speedup, for example speedup=2.0.")
    if len(set(on)) < len(on) or not on:
        raise BudgetError(f"on should name devices, each once; found {', '.join(on) or 'none'}.")
    for name, value in asked.items():
        low, high = (1.0 if name == "speedup" else 0.0), (1.0 if name in known[:2] else math.inf)
        if not low < value < high:
            below = "" if high == math.inf else f" and less than {high:g}"
            raise BudgetError(f"{name} is {value:g}; give more than {low:g}{below}.")


def _exporter(graph: Graph) -> Export:
    images = graph.inputs
    if isinstance(images, tuple) and len(images) == 1:
        images = images[0]
    if not isinstance(images, Tensor):
        raise ExportError(
            "The model was traced with something else than one image tensor. Give export: a "
            "function of (model, path) that writes the ONNX file."
        )
    shape = tuple(images.shape[1:])

    def write(model: nn.Module, path: Path) -> None:
        export_model_file(model, path, input_shape=shape)

    return write
