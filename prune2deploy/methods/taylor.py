"""First-order Taylor score: how much the loss would change if a channel were zero.

Paper: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network
Pruning", CVPR 2019, https://arxiv.org/abs/1906.10771 (its first-order criterion).

A channel is thought of as multiplied with a gate of value 1. For one batch the loss changes
by about -d(loss)/d(gate) when the gate becomes 0; the score is the mean over batches of that
change squared. Behind a batch norm the gate's gradient is
gamma_c * dL/dgamma_c + beta_c * dL/dbeta_c, exactly; without one it is the sum over the
filter's weights and its bias of w * dL/dw. Batch-norm statistics stay fixed, and nothing is
dropped out.

Where several layers or norms share channels (residual additions) the channel goes in all of
them at once, so their changes are added before they are squared. Differs from the paper: it
accumulates during training over some thousand batches; here a trained network is looked at
once, without training.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.channels import Group, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions, require_some, rows

_MISSING = "no layer or norm with parameters produces them"


def change(value: Tensor, gradient: Tensor) -> Tensor:
    """Return the first-order change of the loss when rows become zero, but for its sign.

    Args:
        value, gradient: shape (channels, entries).

    Returns:
        Shape (channels,): sum of value * gradient.
    """
    return (value * gradient).sum(dim=1)


class TaylorOptions(MethodOptions):
    """Options of the Taylor score."""

    images: int = Field(640, ge=1, description="Training images whose loss is looked at.")
    batch_size: int = Field(
        64, ge=1, description="Images per batch; the change of each batch's loss is squared."
    )


class Taylor(Method[TaylorOptions]):
    """Squared first-order change of the loss without the channel."""

    name = "taylor"
    summary = "squared change of the loss, to first order, without the channel"
    source = (
        "Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network "
        "Pruning, CVPR 2019, https://arxiv.org/abs/1906.10771"
    )
    cost = "minutes"
    options = TaylorOptions
    needs_data = True
    needs_losses = True

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean over batches of the squared change, per group."""
        if context.losses is None:
            raise MethodError(
                "taylor looks at the gradient of the loss and was given no losses. In Python "
                "pass plan(..., losses=...), a function of (model, images, batch size) that "
                "yields the loss of each batch; a recipe's task does it by itself."
            )
        groups = context.graph.groups
        slots = [_gates(group) for group in groups]
        names = {slot.tensor for some in slots for slot in some}
        if not names:
            nothing: list[Tensor | None] = [None] * len(groups)
            return require_some(nothing, self.name, _MISSING)
        # A copy, so that no gradient is left behind.
        model = _still(copy.deepcopy(context.model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        totals = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
        batches = 0
        wanted = -(-self.settings.images // self.settings.batch_size)
        with progress.task("Differentiating the loss", total=wanted) as shown:
            for loss in context.losses(model, self.settings.images, self.settings.batch_size):
                _add(model, loss, slots, totals)
                batches += 1
                shown.advance(1)
        if not batches:
            raise MethodError("taylor was given no losses: the training set is empty.")
        scores = [t / batches if some else None for t, some in zip(totals, slots, strict=True)]
        return require_some(scores, self.name, _MISSING)


def _still(model: nn.Module) -> nn.Module:
    """Train mode, in which the loss is computed, without what changes or draws numbers."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def _gates(group: Group) -> list[Slot]:
    """Whose product with their gradient is a gate's gradient: norms where there are any."""
    norms = group.of_role(Role.SCALE) + group.of_role(Role.SHIFT)
    return norms or group.of_role(Role.PRODUCER)


def _add(model: nn.Module, loss: Tensor, slots: list[list[Slot]], totals: list[Tensor]) -> None:
    """Add the squared changes of one batch's loss to the totals."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    for some, total in zip(slots, totals, strict=True):
        found = torch.zeros_like(total)
        for slot in some:
            parameter = model.get_parameter(slot.tensor)
            if parameter.grad is not None:
                value, gradient = parameter.detach().double(), parameter.grad.double()
                found += change(rows(value, slot), rows(gradient, slot)).cpu()
        if not found.isfinite().all():
            raise MethodError(
                "taylor met a gradient that is NaN or inf. Check the checkpoint, and that the "
                "images are normalised as in training."
            )
        total += found.square()


METHOD = Taylor
