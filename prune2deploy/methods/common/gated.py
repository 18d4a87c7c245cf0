"""What methods that learn one number per channel, and score by it, have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prune2deploy.channels import Graph, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, IndexTable, Method, Options
from prune2deploy.methods.common.gates import Gates, Layout, Place, gate_slots
from prune2deploy.methods.common.readings import relative_norms, require_some


class Gated(Method[Options]):
    """A method whose scores are gates that it learns in training.

    Without that training all gates are alike and say nothing; channels are then told apart by
    the norms of their filters.

    place: what the gates multiply.
    """

    needs_training = True
    normalisation = "none"  # gates mean the same in all layers
    place: ClassVar[Place]

    _graph: Graph | None = None
    _gates: Gates | None = None
    _learned: dict[str, Tensor | None] | None = None
    _closed: dict[str, _Closed] | None = None

    def gate(self, graph: Graph, start: float, values: Callable[[Gates], Tensor]) -> Gates:
        """Put gates into the model, each with one number to learn; called by `attach`.

        Args:
            start: what the numbers are at first; they are the gates' parameter `learned`.
            values: see `Gates`.
        """
        # Both look at the plain model, and remember what they saw.
        self._layout, self._full = Layout(graph, self.place), graph.full
        device = next(graph.model.parameters()).device
        numbers = torch.full((self._layout.size,), start, device=device)
        self._gates = Gates(graph, {"learned": numbers}, values, self.place)
        self._graph = graph
        return self._gates

    @property
    def gates(self) -> Gates:
        """The gates, while the method is attached."""
        assert self._gates is not None, "attach comes first"
        return self._gates

    @property
    def numbers(self) -> nn.Parameter:
        """What is learned, one number per gate."""
        return self.gates.get_parameter("learned")

    def kept(self, values: Tensor) -> Tensor:
        """How many channels of each group are kept, with a gradient; whole groups without gates.

        Args:
            values: a number from 0 to 1 per gate.
        """
        parts = zip(self._full.tolist(), self._layout.split(values), strict=True)
        return torch.stack([values.new_tensor(n) if v is None else v.sum() for n, v in parts])

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """The numbers."""
        return (self.numbers,)

    def worth(self) -> Tensor:
        """What channels are scored by, one number per gate; the gates unless overridden."""
        return self.gates.now()

    def detach(self) -> None:
        """Multiply the gates into the model, and remember what each channel is worth."""
        if self._gates is None or self._graph is None:
            return
        worth = self._layout.split(self.worth().detach().clone())
        if self.place == "made":
            self._closed = self._without_gates(self._graph)
        self._gates.fold()
        names = [group.name for group in self._graph.groups]
        self._learned = dict(zip(names, worth, strict=True))
        self._gates = self._graph = None

    def _without_gates(self, graph: Graph) -> dict[str, _Closed]:
        """What the gates that are zero hide, by the names of their groups."""
        shut = self._layout.split(self.gates.now().detach() == 0)
        return {
            group.name: _Closed(
                closed.cpu().numpy(),
                [(s, self.gates.plain(s.tensor).clone()) for s in gate_slots(group, self.place)],
            )
            for group, closed in zip(graph.groups, shut, strict=True)
            if closed is not None and closed.any()
        }

    def score(self, context: Context) -> list[Tensor | None]:
        """What was learned, per group; without training, norms of filters over their mean."""
        learned = self._learned
        if learned is None:
            norms = [relative_norms(context, group) for group in context.graph.groups]
            return require_some(norms, self.name, "no layer with weights produces them")
        scores = []
        for group in context.graph.groups:
            found = learned.get(group.name)
            if group.name not in learned or (found is not None and len(found) != group.size):
                raise MethodError(
                    f"{self.name} was trained on other channels than those of '{group.name}', "
                    f"which has {group.size}. Train with its hooks on the model that is scored."
                )
            scores.append(found)
        return require_some(scores, self.name, "none had a gate")

    def before_cut(self, context: Context, kept: Sequence[IndexTable]) -> None:
        """Open channels that stay although their gate is zero; forget those that go.

        Behind an activation, a scale and shift of zero would never learn again.
        """
        for group, stays in zip(context.graph.groups, kept, strict=True):
            if self._closed and group.name in self._closed:
                self._closed[group.name].open(context.model, stays)
            found = self._learned[group.name] if self._learned is not None else None
            if self._learned is not None and found is not None:
                # A second round may follow without training.
                self._learned[group.name] = found[torch.from_numpy(stays).to(found.device)]
        self._closed = None


@dataclass(frozen=True)
class _Closed:
    """Which channels of a group have a gate of zero, and its parameters without gates."""

    channels: npt.NDArray[np.bool_]
    plain: list[tuple[Slot, Tensor]]

    @torch.no_grad()
    def open(self, model: nn.Module, stays: IndexTable) -> None:
        channels = stays[self.channels[stays]]
        for slot, plain in self.plain:
            parameter = model.get_parameter(slot.tensor)
            entries = torch.from_numpy(slot.index[channels].reshape(-1)).to(plain.device)
            values = plain.index_select(slot.dim, entries).to(parameter)
            parameter.index_copy_(slot.dim, entries.to(parameter.device), values)
