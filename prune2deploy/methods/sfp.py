"""SFP: small filters are zeroed after every epoch of a training, and may grow again.

Paper: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural
Networks", IJCAI 2018, https://arxiv.org/abs/1808.06866.

After each epoch, and after the last, the share 1 - keep of each layer's filters with the
smallest L2 norms is set to zero; all filters go on being trained, so that one zeroed too early
comes back. Batch norms stay as they are. score_c = L2 norm of filter c, which is 0 for those
that are zero at the end. The paper trains 200 epochs with keep 0.7, from scratch or from a
trained network with a tenth of the learning rate.

Where several layers produce the same channels (residual additions), they are one filter: the
norm is that of all their weights, and all of them are zeroed. A zeroed filter leaves a
constant behind its batch norm; cutting it shifts what reads it, until the statistics are
renewed. Differs from the paper: how many channels go is the budget's affair, so keep only
says how many are held at zero while training; give both the same share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Role, Slot
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import filter_norms, joint_norms, rows, weight_slots


def smallest(norms: Tensor, keep: float) -> Tensor:
    """Return the places of the floor(channels * (1 - keep)) smallest norms, ascending.

    Args:
        norms: shape (channels,). Of equal ones the first counts as smaller.
    """
    # 10 * (1 - 0.9) is a little below 1 in floating point.
    count = math.floor(len(norms) * (1 - keep) + 1e-9)
    places: Tensor = norms.argsort(stable=True)[:count].sort().values
    return places


def produced_parts(model: nn.Module, slots: Sequence[Slot]) -> list[Tensor]:
    """Filters in the making: per layer shape (channels, entries), at least float32."""
    found = [rows(model.get_parameter(slot.tensor).detach(), slot) for slot in slots]
    return [part if part.dtype == torch.float64 else part.float() for part in found]


def zero_channels(tensor: Tensor, slot: Slot, channels: Tensor) -> None:
    """Set the entries of some channels to zero, in place.

    Args:
        tensor: the slot's parameter, or its gradient.
    """
    entries = torch.from_numpy(slot.index)[channels.cpu()].reshape(-1)
    tensor.index_fill_(slot.dim, entries.to(tensor.device), 0.0)


class SfpOptions(MethodOptions):
    """Options of SFP."""

    keep: float = Field(
        0.7, gt=0, lt=1, description="Share of each layer's filters that is not zeroed."
    )


class Sfp(Method[SfpOptions]):
    """L2 norm of filters after training in which small ones are zeroed epoch by epoch."""

    name = "sfp"
    summary = "root of a filter's squared weights, small ones zeroed after every epoch"
    source = (
        "He, Kang, Dong, Fu, Yang: Soft Filter Pruning for Accelerating Deep Convolutional "
        "Neural Networks, IJCAI 2018, https://arxiv.org/abs/1808.06866"
    )
    cost = "one training run"
    options = SfpOptions
    needs_training = True

    _model: nn.Module | None = None
    _groups: tuple[tuple[Slot, ...], ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the filters of channels that can go."""
        self._model = graph.model
        self._groups = tuple(
            tuple(weight_slots(graph, group, Role.PRODUCER)) for group in graph.groups
        )

    def after_step(self, step: Step) -> None:
        """Zero the smallest filters of every group at the end of an epoch."""
        if not step.ends_epoch or self._model is None:
            return
        with torch.no_grad():
            for slots in filter(None, self._groups):
                norms = joint_norms(produced_parts(self._model, slots))
                gone = smallest(norms, self.settings.keep)
                for slot in slots:
                    zero_channels(self._model.get_parameter(slot.tensor), slot, gone)

    def score(self, context: Context) -> list[Tensor | None]:
        """The norm over all layers that produce a group, taken together."""
        return filter_norms(context, self.name)


METHOD = Sfp
