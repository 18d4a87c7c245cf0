"""Residual blocks for methods that remove them as wholes."""

from __future__ import annotations

from prune2deploy.channels import Graph
from prune2deploy.channels.blocks import Block, find_blocks
from prune2deploy.errors import MethodError


def require_blocks(graph: Graph, method: str) -> tuple[Block, ...]:
    """The residual blocks of the graph's model.

    Raises:
        MethodError: there are none.
    """
    blocks = find_blocks(graph.model, graph.inputs)
    if not blocks:
        raise MethodError(
            f"{method} was asked to remove whole blocks, and the model has no residual block "
            "whose shortcut is plain. Let it remove channels (structure: channel)."
        )
    return blocks
