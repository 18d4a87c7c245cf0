"""`plan`: scores from a method, counts from a budget, and the plan they make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from prune2deploy.budget import (
    Decision,
    Widths,
    allowed_counts,
    best,
    comparable,
    keep_shares,
    keep_under_cost,
)
from prune2deploy.channels import Graph, Plan, Role
from prune2deploy.channels.groups import matches
from prune2deploy.errors import BudgetError, MethodError, nearest_name_hint
from prune2deploy.methods import METHODS, Context, Method, Normalisation
from prune2deploy.methods.base import Allocation, Counts, Images, Judge, Losses
from prune2deploy.planning.blocks import plan_blocks
from prune2deploy.planning.outcome import held_back, reached

Share = float | Mapping[str, float]
_TIMED = {"latency_ms", "speedup"}
Allocate = Callable[[Allocation], Counts | None]
UNITS = {"macs": "MACs", "params": "parameters"}


def plan(
    graph: Graph,
    method: str | Method[Any] = "l1",
    *,
    budget: Mapping[str, Share],
    round_to: int = 8,
    min_channels: int | None = None,
    normalize: Normalisation | None = None,
    images: Iterable[Tensor] | Images | None = None,
    losses: Losses | None = None,
    judge: Judge | None = None,
    original: Graph | None = None,
    **options: Any,
) -> Plan:
    """Decide which channels of a traced model stay.

    Args:
        graph: from trace().
        method: a name from `prune2deploy methods`, or a Method.
        budget: one of {"macs": share}, {"params": share}, {"channels": share} or
            {"channels": {pattern: share}}; shares of the original that are *kept*,
            in (0, 1).
        round_to: widths become multiples of this where the group has such a width.
        min_channels: the fewest channels a group keeps; None: a tenth for macs and
            params, one for channels.
        normalize: how groups are made comparable; None: the method's own way.
        images: normalised training images for methods that look at data: batches, or
            a function of (count, batch size) that returns batches.
        losses: for methods that look at gradients: a function of (model, count, batch
            size) that yields the training loss of each batch.
        judge: for methods that try networks out: a function of a model that returns how
            good it is, higher is better; not on test images.
        original: graph of the model before earlier cuts, whose widths and costs the
            shares are of; None: `graph` is the original's.
        options: the method's own options.

    Raises:
        MethodError: unknown method or option, or nothing to score.
        BudgetError: the budget is malformed or cannot be reached.
    """
    chosen = make_method(method, options) if isinstance(method, str) else method
    if chosen.granularity != "channel":
        raise MethodError(
            f"{chosen.name} keeps single weights, and a plan is about channels. Get its masks from "
            "prune2deploy.weight_masks, or plan with a method for channels, for example l1."
        )
    kind, share = _checked_budget(budget)
    check_widths(round_to, min_channels)
    require_groups(graph)
    context = Context(graph, as_source(images), losses, judge)
    if chosen.removes_blocks:
        return plan_blocks(context, chosen, kind, share, original or graph)
    scores = _scores(context, chosen, normalisation_of(chosen, normalize))
    try:
        decision = decide(
            graph,
            scores,
            budget,
            round_to,
            min_channels,
            original or graph,
            lambda choice: chosen.allocate(context, scores, choice),
        )
    except BudgetError as err:
        raise BudgetError(" ".join([str(err), *held_back(graph.frozen)])) from err
    unjudged = [g.name for g, s in zip(graph.groups, scores, strict=True) if s is None]
    notes = [reached(graph, decision.kept, original or graph, kind, share), *decision.notes]
    notes += held_back(graph.frozen)
    if edits_weights(chosen):
        notes.append(
            f"{chosen.name} edits weights once it is known which channels stay. A run does so by "
            "itself; in Python cut what prune2deploy.prepare(graph, plan, method) returns."
        )
    if unjudged:
        notes.append(f"{chosen.name} cannot judge and so kept whole: {', '.join(unjudged)}.")
    return graph.plan(decision.kept, notes)


def require_groups(graph: Graph) -> None:
    """Raise BudgetError where nothing can be cut."""
    if not graph.groups:
        raise BudgetError(
            "The model has no channels that can be removed: everything is frozen. "
            + " ".join(held_back(graph.frozen))
            + " 'prune2deploy inspect' shows all."
        )


def edits_weights(method: Method[Any]) -> bool:
    """Whether the method has something to do between the plan and the cut."""
    return type(method).before_cut is not Method.before_cut


def prepare(
    graph: Graph,
    plan: Plan,
    method: str | Method[Any],
    *,
    images: Iterable[Tensor] | Images | None = None,
    **options: Any,
) -> nn.Module:
    """Let a method make weights ready for a cut, as ThiNet and C-SGD do; others change nothing.

    Args:
        graph: the one that the plan was made from. Its model is left alone.
        method: a name, or the Method that the plan was made with; one that learns in training
            knows what it has learned, so it must be the same.
        images: as for `plan`.
        options: the method's own options.

    Returns:
        A copy of the model, to be given to `cut` with the plan.

    Raises:
        MethodError: what the method needs is missing.
    """
    chosen = make_method(method, options) if isinstance(method, str) else method
    ready = replace(graph, model=copy.deepcopy(graph.model))
    chosen.before_cut(Context(ready, as_source(images)), ready.kept(plan))
    return ready.model


def as_source(images: Iterable[Tensor] | Images | None) -> Images | None:
    """Batches as a function of (count, batch size) that returns them."""
    if images is None or callable(images):
        return images
    batches = [images] if isinstance(images, Tensor) else list(images)
    return lambda count, size: iter(batches)


def channel_scores(
    context: Context, method: Method[Any], normalize: str | None
) -> list[np.typing.NDArray[np.float64] | None]:
    """Scores per group, comparable between groups; for `normalize` see `plan`.

    Raises:
        MethodError: the method scores no channels, or nothing of this model.
    """
    return _scores(context, method, normalisation_of(method, normalize))


def _scores(
    context: Context, method: Method[Any], how: Normalisation
) -> list[np.typing.NDArray[np.float64] | None]:
    """The method's scores per group, finite and made comparable."""
    raw = method.score(context)
    for group, values in zip(context.graph.groups, raw, strict=True):
        if values is not None and not values.isfinite().all():
            raise MethodError(
                f"{method.name} scored '{group.name}' with NaN or inf. Check the checkpoint and "
                "that the images are normalised as in training."
            )
    return [None if s is None else comparable(s.detach().double().cpu().numpy(), how) for s in raw]


def make_method(name: str, options: Mapping[str, Any]) -> Method[Any]:
    """Build a method by name.

    Raises:
        MethodError: no such method, or an option it does not have or cannot take.
    """
    if name not in METHODS:
        raise MethodError(f"There is no method '{name}'. {nearest_name_hint(name, METHODS)}")
    kind = METHODS[name]
    try:
        settings = kind.options(**options)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        known = ", ".join(kind.options.model_fields) or "none"
        raise MethodError(f"{name}: {problems}. Its options: {known}.") from err
    return kind(settings)


def decide(
    graph: Graph,
    scores: Sequence[np.typing.NDArray[np.float64] | None],
    budget: Mapping[str, Share],
    round_to: int,
    min_channels: int | None,
    original: Graph,
    allocate: Allocate | None = None,
) -> Decision:
    """Apply a budget to scores; see `plan` for the arguments.

    allocate: of a method that may distribute a budget itself.
    """
    kind, share = _checked_budget(budget)
    floor = 1 if kind == "channels" and min_channels is None else min_channels
    widths = [
        Widths(g.name, allowed_counts(graph.width_steps(n, round_to), floor))
        for n, g in enumerate(graph.groups)
    ]
    if kind == "channels":
        shares, notes = _shares(graph, share)
        shares = _of_original(graph, shares, original)
        decision = keep_shares(scores, widths, shares)
        return Decision(decision.kept, decision.notes + notes)
    cost, before = (
        (graph.cost.macs, original.cost.macs(original.full))
        if kind == "macs"
        else (graph.cost.params, original.cost.params(original.full))
    )
    target = cast("float", share)
    choice = Allocation([w.counts for w in widths], cost, target * before, before)
    counts = None if allocate is None else allocate(choice)
    if counts is not None:
        return Decision(
            tuple(
                np.arange(w.full) if s is None else best(s, int(n))
                for s, w, n in zip(scores, widths, counts, strict=True)
            )
        )
    return keep_under_cost(scores, widths, cost, target, UNITS[kind], original=before)


def _of_original(
    graph: Graph, shares: Sequence[float | None], original: Graph
) -> list[float | None]:
    """Turn shares of the original's channels into shares of what earlier cuts left."""
    before = {g.name: g.size for g in original.groups}
    return [
        None if share is None else min(1.0, share * before.get(g.name, g.size) / g.size)
        for g, share in zip(graph.groups, shares, strict=True)
    ]


def _checked_budget(
    budget: Mapping[str, Share],
) -> tuple[Literal["macs", "params", "channels"], Share]:
    if len(budget) != 1 or next(iter(budget)) not in ("macs", "params", "channels"):
        timed = " For a time, prune2deploy.plan_for_time measures." if set(budget) & _TIMED else ""
        raise BudgetError(
            f"A budget is exactly one of macs, params, channels; found: "
            f"{', '.join(budget) or 'nothing'}. For example budget={{'macs': 0.5}}.{timed}"
        )
    kind, share = next(iter(budget.items()))
    values: list[object] = list(share.values()) if isinstance(share, Mapping) else [share]
    if isinstance(share, Mapping) and kind != "channels":
        raise BudgetError(f"Only 'channels' takes a share per layer; '{kind}' takes one number.")
    if not values or not all(isinstance(v, (int, float)) and 0 < v < 1 for v in values):
        raise BudgetError(
            f"budget {kind}: {share} is not a share between 0 and 1 (the part that is kept)."
        )
    return cast("Literal['macs', 'params', 'channels']", kind), share


def check_widths(round_to: int, min_channels: int | None) -> None:
    """Raise BudgetError for widths that cannot be."""
    if round_to < 1:
        raise BudgetError(f"round_to is {round_to}, expected 1 or more. 1 allows every width.")
    if min_channels is not None and min_channels < 1:
        raise BudgetError(
            f"min_channels is {min_channels}, expected 1 or more: no layer can lose all channels."
        )


def normalisation_of(method: Method[Any], wanted: str | None) -> Normalisation:
    known = get_args(Normalisation)
    if wanted is not None and wanted not in known:
        raise MethodError(
            f"normalize is '{wanted}', expected None (the method's own way) or one of "
            f"{', '.join(known)}."
        )
    return cast("Normalisation", wanted or method.normalisation)


def _shares(graph: Graph, share: Share) -> tuple[list[float | None], tuple[str, ...]]:
    """Per group the share to keep, and notes; the first pattern that names a layer decides."""
    if not isinstance(share, Mapping):
        return [share] * len(graph.groups), ()
    # A layer that only reads a group's channels has widths of its own, so it does not count.
    made = [[s.tensor for s in g.slots if s.role != Role.CONSUMER] for g in graph.groups]
    notes = []
    for pattern in share:
        if any(matches(name, pattern) for names in made for name in names):
            continue
        if not any(matches(name, pattern) for name in graph.shapes):
            raise BudgetError(
                f"budget channels: '{pattern}' matches no layer of the model. "
                + nearest_name_hint(pattern, [g.name for g in graph.groups])
            )
        notes.append(f"All channels of '{pattern}' are frozen and so kept.")
    shares = [
        next((v for p, v in share.items() if any(matches(n, p) for n in names)), None)
        for names in made
    ]
    return shares, tuple(notes)
