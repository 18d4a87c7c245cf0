"""Plans for methods that remove whole residual blocks: which go, so that a budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from prune2deploy.budget.cost import TOLERANCE
from prune2deploy.channels import Choice, Graph, Plan, cut, trace
from prune2deploy.channels.blocks import Block, plan_without, zeroed_blocks
from prune2deploy.channels.forward import call_model, mode_kept, output_tensors
from prune2deploy.channels.verify import TOLERANCE as CLOSE
from prune2deploy.errors import BudgetError, MethodError, ModelError
from prune2deploy.methods import Context, Method
from prune2deploy.methods.common.blocks import require_blocks

Unit = Literal["macs", "params", "channels"]


def plan_blocks(
    context: Context,
    method: Method[Any],
    unit: Unit,
    share: float | Mapping[str, float],
    original: Graph,
) -> Plan:
    """Remove the blocks with the lowest scores until the cost is `share` of the original's.

    A block that would take more than is needed goes all the same if nothing else is left to
    reach the budget; the plan's note says how much was removed.

    Raises:
        BudgetError: all blocks together are not enough, or the budget is one of channels.
        MethodError: there are no blocks, or a score is not a number.
        ModelError: without the blocks the model does something else than with zero branches.
    """
    if unit == "channels" or isinstance(share, Mapping):
        raise BudgetError(
            f"{method.name} removes whole blocks, and a budget of channels says nothing about "
            "them. Use macs or params."
        )
    graph = context.graph
    blocks = ranked_blocks(context, method)
    whole, full = cost_of(graph, unit), cost_of(original, unit)
    savings = [whole - cost_of(traced_without(graph, [block]), unit) for block in blocks]
    target = share * full
    cost, gone = whole, []
    for block, saved in zip(blocks, savings, strict=True):
        if cost <= target * (1 + TOLERANCE):
            break
        gone.append(block)
        cost -= saved
    if cost > target * (1 + TOLERANCE):
        raise BudgetError(
            f"The budget keeps {share:.1%}, but without all {len(blocks)} blocks that can go "
            f"{cost / full:.1%} are left. Ask for a larger share, or let the method remove "
            "channels (structure: channel)."
        )
    names = ", ".join(block.name for block in gone) or "none"
    notes = [f"Blocks removed: {names}. {cost / full:.1%} of the {unit} are left."]
    return checked_plan(graph, gone, notes)


def ranked_blocks(context: Context, method: Method[Any]) -> list[Block]:
    """The blocks that can go, the one that matters least first.

    Raises:
        MethodError: there are none, or a score is not a number.
    """
    blocks = require_blocks(context.graph, method.name)
    scores = method.score_blocks(context, blocks)
    if not scores.isfinite().all():
        raise MethodError(f"{method.name} scored a block with NaN or inf. Check the checkpoint.")
    return [blocks[place] for place in scores.argsort(stable=True).tolist()]


def checked_plan(graph: Graph, gone: Sequence[Block], notes: Sequence[str]) -> Plan:
    """The plan without these blocks.

    Raises:
        ModelError: without them the model does something else than with zero branches.
    """
    _check(graph, gone)
    choices = tuple(Choice(g.name, g.size, g.size) for g in graph.groups)
    return Plan({}, {}, choices, tuple(notes), blocks=plan_without(gone).blocks)


def cost_of(graph: Graph, unit: Unit) -> int:
    """All MACs or parameters of a graph's model."""
    return graph.cost.macs(graph.full) if unit == "macs" else graph.cost.params(graph.full)


def traced_without(graph: Graph, blocks: Sequence[Block]) -> Graph:
    """The graph of the model without some blocks."""
    return trace(cut(graph.model, plan_without(blocks)), graph.inputs)


def _check(graph: Graph, gone: Sequence[Block]) -> None:
    """The smaller model must return what the whole one does with these branches at zero."""
    want = output_tensors(zeroed_blocks(graph.model, graph.inputs, gone))
    small = cut(graph.model, plan_without(gone))
    with torch.no_grad(), mode_kept(small, training=False):
        got = output_tensors(call_model(small, graph.inputs))
    for a, b in zip(got, want, strict=True):
        if float((a - b).abs().max()) > CLOSE * float(b.abs().max()):
            raise ModelError(
                "Without its residual blocks "
                + ", ".join(block.name for block in gone)
                + " the model does not return what it returns when their branches give zero. "
                "Let the method remove channels (structure: channel)."
            )
