"""OICSR: what makes a channel and what reads it are penalised, and judged, as one vector.

Paper: Li, Qi, Wang, Ge, Li, Yue, Sun, "OICSR: Out-In-Channel Sparsity Regularization for
Compact Deep Neural Networks", CVPR 2019, https://arxiv.org/abs/1905.11664.

Training minimises loss + penalty * sum over channels of |v_c|, where v_c holds filter c of a
layer and the weights that read channel c in the next one; of a residual group those of all
layers that make or read it. score_c = |v_c|^2. The paper trains, prunes the lowest tenth over
the whole network, trains on, and so forth (in a recipe: schedule kind iterative).

Differs from the paper, of which the normalisation of the energy could not be read: with
by_size the energy is divided by the number of weights, so that channels of wide layers can be
ranked together with those of narrow ones. The penalty of 1e-4 is ours, too.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import require_some, rows, weight_slots


def energy(parts: list[Tensor]) -> Tensor:
    """Return |v_c|^2 of the vectors that several parts make up together.

    Args:
        parts: each of shape (channels, entries).

    Returns:
        Shape (channels,), >= 0.
    """
    return torch.stack([part.square().sum(dim=1) for part in parts]).sum(dim=0)


def group_lasso(energies: Tensor) -> Tensor:
    """Sum over channels of the norm; the gradient of a channel of zeros is zero, not NaN.

    Args:
        energies: squared norms, shape (channels,).
    """
    alive = energies > 0
    safe = torch.where(alive, energies, 1.0)
    return torch.where(alive, safe.sqrt(), 0.0).sum()


class OicsrOptions(MethodOptions):
    """Options of OICSR."""

    penalty: float = Field(1e-4, ge=0, description="Weight of the sum of the channels' norms.")
    by_size: bool = Field(
        True, description="Divide a channel's energy by the number of its weights."
    )


class Oicsr(Method[OicsrOptions]):
    """Energy of the weights that make and read a channel, penalised in training."""

    name = "oicsr"
    summary = "energy of the weights that make and read a channel, penalised in training"
    source = (
        "Li, Qi, Wang, Ge, Li, Yue, Sun: OICSR: Out-In-Channel Sparsity Regularization for "
        "Compact Deep Neural Networks, CVPR 2019, https://arxiv.org/abs/1905.11664"
    )
    cost = "several training runs"
    options = OicsrOptions
    needs_training = True

    _model: nn.Module | None = None
    _slots: tuple[tuple[Slot, ...], ...] = ()

    def attach(self, graph: Graph) -> None:
        """Find the weights of channels that can go."""
        self._model = graph.model
        self._slots = tuple(tuple(_weights(graph, group)) for group in graph.groups)

    def extra_loss(self) -> Tensor | None:
        """penalty * sum of the norms of all channels of all groups."""
        if self._model is None or not any(self._slots):
            return None
        sums = [
            group_lasso(energy([rows(self._model.get_parameter(s.tensor), s) for s in slots]))
            for slots in self._slots
            if slots
        ]
        return self.settings.penalty * torch.stack(sums).sum()

    def score(self, context: Context) -> list[Tensor | None]:
        """Energy per group."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = [rows(context.tensor(s.tensor), s) for s in _weights(context.graph, group)]
            if not parts:
                scores.append(None)
                continue
            found = energy(parts)
            if not found.isfinite().all():
                raise MethodError(
                    f"The weights that make or read '{group.name}' hold NaN or inf. Check the "
                    "checkpoint."
                )
            size = sum(part.shape[1] for part in parts)
            scores.append(found / size if self.settings.by_size else found)
        return require_some(scores, self.name, "no layer with weights makes or reads them")


def _weights(graph: Graph, group: Group) -> list[Slot]:
    return weight_slots(graph, group, Role.PRODUCER, Role.CONSUMER)


METHOD = Oicsr
