"""ResRep: 1x1 convolutions behind the batch norms learn which channels to forget.

Paper: Ding, Hao, Tan, Liu, Han, Guo, Ding, "ResRep: Lossless CNN Pruning via Decoupling
Remembering and Forgetting", ICCV 2021, https://arxiv.org/abs/2007.03260; read in the authors'
code.

Behind each batch norm of C channels stands a compactor: a matrix Q of shape (C, C), at first
the identity. All other weights train as usual. Row c of Q has the gradient

    mask_c * (gradient of the task's loss) + penalty * Q_c / |Q_c|

and is moved by SGD of its own, with momentum 0.99, without weight decay and with the training's
learning rate. mask_c is 0 for rows to be forgotten: again and again the rows with the lowest
norms over the whole network are chosen, more of them each time, until the network without their
channels has the multiply-accumulates of `keep`. A row may be taken back. score_c = |Q_c|,
comparable over the network, since all start at 1.

After the training Q is folded into layer and norm, exactly: with y = Q norm(layer(x)), the new
layer gives y minus a constant, and the new norm, whose scale is the deviation of y as the
training saw it and whose statistics are those of y, gives y. So what is left is a network of
the same modules that can be trained on.

Compacted are groups that one layer with one norm right behind it makes (the inner layers of
residual blocks); with `residual` also those that several such pairs make, which then share one
Q. Depthwise and transposed convolutions have none, and no layer has whose result is read
elsewhere too. Groups without one are not judged and stay whole. Without any training all groups
are judged by the L2 norm of their filters over its mean, as a row's norm says nothing yet.

Differs from the code: it masks 4 more channels each 200 steps; here the number rises in a
straight line to all channels within the share `grow` of the training, so that short trainings
reach `keep` as well; the layer keeps its norm, where the code's ends with a bias instead; rows
are removed by the recipe's budget (give it the same share), not below a norm of 1e-5.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.channels.norm_links import norm_behind
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Counts, Method, MethodOptions, Step
from prune2deploy.methods.common.compactors import Compactors, pairs_of
from prune2deploy.methods.common.readings import learned_scores

log = logging.getLogger(__name__)

_MOMENTUM = 0.99


def penalised(gradient: Tensor, rows: Tensor, mask: Tensor, penalty: float) -> Tensor:
    """Return mask_c * gradient_c + penalty * Q_c / |Q_c|.

    Args:
        gradient, rows: shape (channels, channels). mask: shape (channels,), 1 or 0.
    """
    direction: Tensor = rows / (rows.norm(dim=1, keepdim=True) + 1e-12)
    return mask[:, None] * gradient + penalty * direction


def forgotten(
    norms: Sequence[Tensor], most: int, macs: Callable[[Sequence[int]], int], target: float
) -> list[Tensor]:
    """Choose the rows to forget: the lowest of all, as few as bring the cost to the target.

    Args:
        norms: per group shape (channels,).
        most: rows that may be chosen at most.
        macs: cost of the network as a function of the channels that each of the groups keeps.

    Returns:
        Per group shape (channels,), bool. The largest of a group is never chosen.
    """
    owner = torch.cat([torch.full((len(n),), g) for g, n in enumerate(norms)])
    place = torch.cat([torch.arange(len(n)) for n in norms])
    values = torch.cat(list(norms))
    order = values.argsort(stable=True)
    largest = {(g, int(n.argmax())) for g, n in enumerate(norms)}
    pairs = [(int(owner[i]), int(place[i])) for i in order.tolist()]
    pairs = [pair for pair in pairs if pair not in largest][:most]

    def cost(count: int) -> int:
        gone = np.bincount([g for g, _ in pairs[:count]], minlength=len(norms))
        return macs([len(n) - int(k) for n, k in zip(norms, gone, strict=True)])

    low, high = 0, len(pairs)
    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= target:
            high = middle
        else:
            low = middle + 1
    chosen = [torch.zeros(len(n), dtype=torch.bool) for n in norms]
    for group, channel in pairs[:low]:
        chosen[group][channel] = True
    return chosen


class ResRepOptions(MethodOptions):
    """Options of ResRep."""

    keep: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the multiply-accumulates that the network has without the rows to "
        "be forgotten; give the budget the same.",
    )
    penalty: float = Field(
        1e-4,
        ge=0,
        description="Weight of the rows' norms. Each step takes about rate * penalty / 0.01 off "
        "the norm of a forgotten row, which is 1 at first: raise it for short trainings.",
    )
    start: float = Field(
        0.01, ge=0, lt=1, description="Share of the training before the first row is forgotten."
    )
    grow: float = Field(
        0.3, gt=0, lt=1, description="Share of the training in which rows are added, from `start`."
    )
    interval: float = Field(
        0.002, gt=0, lt=1, description="Share of the training between two choices of rows."
    )
    residual: bool = Field(
        False, description="Compact channels that several layers make together as well."
    )


class ResRep(Method[ResRepOptions]):
    """Row norms of compactors behind the batch norms, some of which are made to forget."""

    name = "resrep"
    summary = "row norm of a 1x1 convolution behind its batch norm that learns to forget channels"
    source = (
        "Ding, Hao, Tan, Liu, Han, Guo, Ding: ResRep: Lossless CNN Pruning via Decoupling "
        "Remembering and Forgetting, ICCV 2021, https://arxiv.org/abs/2007.03260"
    )
    cost = "one training run"
    options = ResRepOptions
    needs_training = True
    normalisation = "none"  # all rows start at 1

    def __init__(self, settings: ResRepOptions) -> None:
        super().__init__(settings)
        self._compactors: Compactors | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._macs: Callable[[Sequence[int]], int] = len
        self._target = 0.0
        self._chosen_at = 0
        self._norms: dict[str, Tensor] = {}

    def attach(self, graph: Graph) -> None:
        """Put compactors behind the norms."""
        # The cost looks at the model's parameters, so before compactors are among them.
        cost, full = graph.cost, graph.full
        links = norm_behind(graph.model, graph.inputs)
        pairs = [pairs_of(graph, group, links, self.settings.residual) for group in graph.groups]
        numbers = [number for number, some in enumerate(pairs) if some]
        if not numbers:
            raise MethodError(
                "resrep needs channels that one convolution or linear layer with a batch norm "
                "right behind it makes, and none of them can go. Choose another method, for "
                "example l1" + ("." if self.settings.residual else ", or set residual: true.")
            )

        def macs(kept: Sequence[int]) -> int:
            counts: Counts = full.copy()
            counts[numbers] = kept
            return cost.macs(counts)

        self._macs, self._target = macs, self.settings.keep * cost.macs(full)
        self._compactors = Compactors(
            graph.model, {graph.groups[n].name: pairs[n] for n in numbers}
        )
        self._optimizer = torch.optim.SGD(
            self._compactors.matrices, lr=0.0, momentum=_MOMENTUM, weight_decay=0.0
        )
        self._chosen_at = 0

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """The compactors."""
        return () if self._compactors is None else list(self._compactors.matrices)

    def after_backward(self) -> None:
        """Take the task's gradient from forgotten rows, and add the penalty to all."""
        if self._compactors is None:
            return
        with torch.no_grad():
            for matrix, mask in self._compactors.masked():
                if matrix.grad is not None:
                    new = penalised(matrix.grad, matrix, mask, self.settings.penalty)
                    matrix.grad.copy_(new)

    def after_step(self, step: Step) -> None:
        """Move the compactors, and from time to time choose which rows to forget."""
        if self._compactors is None or self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = step.lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        every = max(1, round(self.settings.interval * step.total))
        if step.progress <= self.settings.start or step.number - self._chosen_at < every:
            return
        self._chosen_at = step.number
        norms = self._compactors.norms()
        share = min(1.0, (step.progress - self.settings.start) / self.settings.grow)
        most = math.ceil(share * sum(len(n) for n in norms))
        self._compactors.forget(forgotten(norms, most, self._macs, self._target))

    def detach(self) -> None:
        """Fold the compactors into layers and norms."""
        if self._compactors is not None:
            self._norms = self._compactors.fold()
            self._warn()
        self._compactors = self._optimizer = None

    def _warn(self) -> None:
        assert self._compactors is not None
        masks = [mask.cpu() for _, mask in self._compactors.masked()]
        rest = torch.cat([n[m == 0] for n, m in zip(self._norms.values(), masks, strict=True)])
        if len(rest) and float(rest.max()) > 0.1:
            log.warning(
                "resrep: of %d rows to be forgotten, the largest still has a norm of %.2f. Raise "
                "its penalty (now %g), or train longer.",
                len(rest),
                float(rest.max()),
                self.settings.penalty,
            )

    def score(self, context: Context) -> list[Tensor | None]:
        """Row norms of compactors; without any training, filter norms."""
        missing = "none had a compactor in the training"
        return learned_scores(context, self._norms, self.name, missing)


METHOD = ResRep
