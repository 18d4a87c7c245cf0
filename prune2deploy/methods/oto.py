"""OTO: all that makes a channel is set to zero together, once a step would turn it round.

Paper: Chen, Ji, Ding, Fang, Wang, Zhu, Liang, Shi, Yi, Tu, "Only Train Once: A One-Shot Neural
Network Training And Pruning Framework", NeurIPS 2021, https://arxiv.org/abs/2107.07467.

x_c holds all that can make channel c anything but zero: its filters and their biases, and the
scales and shifts of its batch norms; of a residual group those of all layers. If x_c is zero the
channel is zero, whatever comes in, and cutting it changes nothing. Training minimises
loss + penalty * sum |x_c| by steps with the subgradient penalty * x_c / (|x_c| + 1e-6). After
the share warm_up of the training each step is a trial that takes x_c to y_c, and

    x_c <- 0 if <y_c, x_c> < eps * |x_c|^2, else y_c

A channel that is zero stays zero. score_c = |x_c|.

eps starts at the option's value. If no channel became zero over a twentieth of this second stage
it is raised by 0.1, up to 0.999, and once only the share keep of every group's channels is left
it is what it was. No more than that are set to zero: where too many pass the test, those go for
which <y_c, x_c> / |x_c|^2 is least. How many are cut is the budget's affair; give both the same
share.

Differs from the paper and its code: the trial is the step of the recipe's optimizer, with its
momentum and weight decay; eps is looked at in shares of the training, not every 200 steps, so
that short trainings get there too; the code counts the channels that are too many where it
should count those that may still go; the penalty is not lowered late in the training. That half
of the training is warm-up is recalled, not read. A batch norm without scale and shift gives a
constant for a filter of zeros, so there a cut does change something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import by_channel, require_some, rows

CHECKS = 20
"""How often eps is looked at in the second stage."""


def turned(dots: Tensor, squares: Tensor, eps: float, most: int) -> Tensor:
    """Return which channels are to be zero: those that are, and those that a trial turned round.

    Args:
        dots: <y_c, x_c>, shape (channels,). squares: |x_c|^2, shape (channels,).
        most: channels that may be zero, those included that are.

    Returns:
        bool, shape (channels,).
    """
    zero = squares == 0
    kept = torch.where(zero, torch.inf, dots / torch.where(zero, 1.0, squares))
    # The rank, so that nothing need be counted on the host.
    rank = kept.argsort(stable=True).argsort(stable=True)
    return zero | ((kept < eps) & (rank < most - zero.sum()))


def next_eps(eps: float, start: float, stalled: bool, met: bool) -> float:
    """Return eps for the next steps: raised while nothing happens, reset when all is done."""
    if met:
        return start
    return min(eps + 0.1, 0.999) if stalled else eps


class OtoOptions(MethodOptions):
    """Options of OTO."""

    penalty: float = Field(
        1e-3,
        ge=0,
        description="Weight of the sum of the channels' norms. Over the training lr * penalty "
        "should add up to about such a norm, so a short one needs more, such as 0.02.",
    )
    warm_up: float = Field(
        0.5, ge=0, lt=1, description="Share of the training before channels are set to zero."
    )
    keep: float = Field(
        0.5, gt=0, le=1, description="Share of each group's channels that is not set to zero."
    )
    eps: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="How far along itself a channel must still point after a step, to begin with.",
    )


class Oto(Method[OtoOptions]):
    """Norm of all that makes a channel, set to zero in training where a step turns it round."""

    name = "oto"
    summary = "norm of all that makes a channel, set to zero in training when a step turns it round"
    source = (
        "Chen, Ji, Ding, Fang, Wang, Zhu, Liang, Shi, Yi, Tu: Only Train Once: A One-Shot Neural "
        "Network Training And Pruning Framework, NeurIPS 2021, https://arxiv.org/abs/2107.07467"
    )
    cost = "one training run"
    options = OtoOptions
    needs_training = True
    normalisation = "none"  # zero is zero in every group

    _model: nn.Module | None = None
    _groups: tuple[tuple[Slot, ...], ...] = ()
    _most: tuple[int, ...] = ()
    _before: tuple[tuple[Tensor, ...], ...] = ()
    _eps = 0.0
    _zeros = 0

    def attach(self, graph: Graph) -> None:
        """Find what makes the channels that can go."""
        self._model = graph.model
        found = [(tuple(_makers(group)), group.size) for group in graph.groups]
        self._groups = tuple(slots for slots, _ in found if slots)
        # 10 * (1 - 0.9) is a little below 1 in floating point.
        share = 1 - self.settings.keep
        self._most = tuple(math.floor(size * share + 1e-9) for slots, size in found if slots)
        self._before = ()
        self._eps = self.settings.eps
        self._zeros = 0

    def after_backward(self) -> None:
        """Add the subgradient of the penalty."""
        with torch.no_grad():
            for slots in self._groups:
                norms = _squares(slots, self._parameters(slots)).sqrt()
                for slot, weight in zip(slots, self._parameters(slots), strict=True):
                    if weight.grad is not None:
                        factor = self.settings.penalty / (norms + 1e-6)
                        weight.grad.add_(weight * by_channel(factor, slot, weight, 0.0))

    def after_step(self, step: Step) -> None:
        """Set to zero what the step turned round, and what was zero before it."""
        with torch.no_grad():
            for slots, before, most in zip(self._groups, self._before, self._most, strict=False):
                dots, squares = self._dots(slots, before), _squares(slots, before)
                stay = ~turned(dots, squares, self._eps, most)
                for slot, weight in zip(slots, self._parameters(slots), strict=True):
                    weight.mul_(by_channel(stay, slot, weight, 1.0))
            if self._before:
                self._look_at_eps(step)
            second_stage = self.settings.warm_up <= step.progress < 1
            self._before = tuple(map(self._values, self._groups)) if second_stage else ()

    def detach(self) -> None:
        """Let go of the weights of the last step."""
        self._before = ()

    def score(self, context: Context) -> list[Tensor | None]:
        """Norm of all that makes a channel, per group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            slots = _makers(group)
            if not slots:
                scores.append(None)
                continue
            squares = _squares(slots, [context.tensor(slot.tensor) for slot in slots])
            if not squares.isfinite().all():
                raise MethodError(
                    f"What makes '{group.name}' holds NaN or inf. Check the checkpoint."
                )
            scores.append(squares.sqrt())
        return require_some(scores, self.name, "no layer or norm with parameters makes them")

    def _look_at_eps(self, step: Step) -> None:
        stage = step.total * (1 - self.settings.warm_up)
        if step.number % max(1, round(stage / CHECKS)):
            return
        squares = [_squares(slots, self._parameters(slots)) for slots in self._groups]
        zeros = [int((square == 0).sum()) for square in squares]
        met = all(n >= most for n, most in zip(zeros, self._most, strict=True))
        stalled = sum(zeros) <= self._zeros
        self._eps = next_eps(self._eps, self.settings.eps, stalled, met)
        self._zeros = sum(zeros)

    def _parameters(self, slots: tuple[Slot, ...]) -> tuple[nn.Parameter, ...]:
        assert self._model is not None
        return tuple(self._model.get_parameter(slot.tensor) for slot in slots)

    def _values(self, slots: tuple[Slot, ...]) -> tuple[Tensor, ...]:
        return tuple(weight.detach().clone() for weight in self._parameters(slots))

    def _dots(self, slots: tuple[Slot, ...], others: tuple[Tensor, ...]) -> Tensor:
        """Per channel the inner product of what the model has and others."""
        triples = zip(slots, self._parameters(slots), others, strict=True)
        parts = [(rows(w, s) * rows(o, s)).sum(dim=1) for s, w, o in triples]
        return torch.stack(parts).sum(dim=0)


def _makers(group: Group) -> list[Slot]:
    return [s for role in (Role.PRODUCER, Role.SCALE, Role.SHIFT) for s in group.of_role(role)]


def _squares(slots: Sequence[Slot], values: Sequence[Tensor]) -> Tensor:
    """Per channel the sum of squares over several parameters, shape (channels,)."""
    parts = [rows(v, s).square().sum(dim=1) for s, v in zip(slots, values, strict=True)]
    return torch.stack(parts).sum(dim=0)


METHOD = Oto
