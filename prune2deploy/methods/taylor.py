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
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.channels import Group, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import require_some, rows

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
        slots = [_gates(group) for group in context.graph.groups]
        groups = [
            torch.zeros(group.size, dtype=torch.float64) if some else None
            for group, some in zip(context.graph.groups, slots, strict=True)
        ]
        totals = [total for total in groups if total is not None]
        batches = 0
        settings = self.settings
        found = changes(
            context, [s for s in slots if s], settings.images, settings.batch_size, self.name
        )
        for batch in found:
            batches += 1
            for total, change_of_loss in zip(totals, batch, strict=True):
                total += change_of_loss.square()
        scores = [None if total is None else total / batches for total in groups]
        return require_some(scores, self.name, _MISSING)


def changes(
    context: Context, gates: list[list[Slot]], images: int, batch_size: int, method: str
) -> Iterator[list[Tensor]]:
    """Differentiate the loss of every batch by gates that the model need not have.

    Args:
        gates: for each what it multiplies: entries of parameters that would become zero with it.
        method: whose score it is, for messages.

    Yields:
        Per gate the change of one batch's loss, shape (channels,), float64, in main memory;
        nothing if there are no gates.

    Raises:
        MethodError: there are no losses, or a gradient is not finite.
    """
    if context.losses is None:
        raise MethodError(
            f"{method} looks at the gradient of the loss and was given no losses. In Python "
            "pass plan(..., losses=...), a function of (model, images, batch size) that "
            "yields the loss of each batch; a recipe's task does it by itself."
        )
    names = {slot.tensor for some in gates for slot in some}
    if not names:
        return
    # A copy, so that no gradient is left behind.
    model = _still(copy.deepcopy(context.model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    wanted = -(-images // batch_size)
    empty = True
    with progress.task("Differentiating the loss", total=wanted) as shown:
        for loss in context.losses(model, images, batch_size):
            empty = False
            yield [_change(some, method) for some in _differentiated(model, loss, gates)]
            shown.advance(1)
    if empty:
        raise MethodError(f"{method} was given no losses: the training set is empty.")


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


def _differentiated(
    model: nn.Module, loss: Tensor, gates: list[list[Slot]]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Per gate the values and the gradients of what it multiplies, in rows."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    for slots in gates:
        pairs = []
        for slot in slots:
            parameter = model.get_parameter(slot.tensor)
            value = parameter.detach().double()
            gradient = torch.zeros_like(value) if parameter.grad is None else parameter.grad
            pairs.append((rows(value, slot), rows(gradient.double(), slot)))
        yield pairs


def _change(pairs: list[tuple[Tensor, Tensor]], method: str) -> Tensor:
    """The change of the loss with one gate, over all that it multiplies."""
    found = torch.stack([change(value, gradient).cpu() for value, gradient in pairs]).sum(dim=0)
    if not found.isfinite().all():
        raise MethodError(
            f"{method} met a gradient that is NaN or inf. Check the checkpoint, and that the "
            "images are normalised as in training."
        )
    return found


METHOD = Taylor
