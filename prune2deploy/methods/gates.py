"""Gates: a number per channel that is learned, multiplied into the network's own parameters.

No module is put between others. A gate multiplies the parameters that make its channel (the
scale and shift of its batch norms, or the filter and bias where there is none), or the weights
that read it; both are the same as multiplying the channel itself, the first in front of the
activation and the second behind it. So a gated network is the network with other parameters:
`fold` writes them down, and what is left is the plain model again, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.errors import MethodError

Place = Literal["made", "read"]
"""Whether gates multiply what makes their channels, or what reads them."""

_NAME = "prune2deploy_gates"


class Gates(nn.Module):
    """The gates of all channels of a model that can have one; attached as long as it trains.

    Args:
        graph: of the model that is trained; the gates become a part of that model.
        parameters: what is learned, by name; each becomes an attribute.
        place: what is multiplied.
        values: called once per forward pass with these gates; returns a gate per channel, shape
            (channels,), the groups one after the other. May draw numbers if `training`.

    Raises:
        MethodError: no channel can have a gate.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: dict[str, Tensor],
        values: Callable[[Gates], Tensor],
        place: Place = "made",
    ) -> None:
        super().__init__()
        layout = Layout(graph, place)
        if not layout.size:
            raise MethodError(
                "No channel that can go is made and read by parameters of its own, so none can "
                "have a gate. Choose a method without gates, for example l1."
            )
        self._layout = layout
        self._values = values
        # In tuples, or they would be registered as parts of this module.
        self._now: tuple[Tensor] | None = None
        self._model = (graph.model,)
        for name, start in parameters.items():
            self.register_parameter(name, nn.Parameter(start))
        graph.model.add_module(_NAME, self)
        for tensor, scaled in layout.tensors.items():
            owner, _, leaf = tensor.rpartition(".")
            module = graph.model.get_submodule(owner)
            parametrize.register_parametrization(module, leaf, _Scaled(self, scaled), unsafe=True)
        self._handles = (
            graph.model.register_forward_pre_hook(self._draw),
            graph.model.register_forward_hook(self._forget, always_call=True),
        )

    def now(self) -> Tensor:
        """The gates of the forward pass that is running; else those of eval mode."""
        if self._now is not None:
            return self._now[0]
        training = self.training
        self.train(False)
        try:
            return self._values(self)
        finally:
            self.train(training)

    def forward(self, given: Any) -> Any:
        """Return what is given: a model that runs all its parts in a row runs this one, too."""
        return given

    def plain(self, tensor: str) -> Tensor:
        """A parameter by name as it is without the gates that multiply it, detached."""
        owner, _, leaf = tensor.rpartition(".")
        (model,) = self._model
        found: Tensor = getattr(model.get_submodule(owner).parametrizations, leaf).original
        return found.detach()

    def _draw(self, model: nn.Module, inputs: Any) -> None:
        self._now = (self._values(self),)

    def _forget(self, model: nn.Module, inputs: Any, output: Any) -> None:
        # Or its graph would live on, and copying the model would fail.
        self._now = None

    def fold(self) -> list[Tensor | None]:
        """Multiply the gates of eval mode into the parameters, and take the gates away.

        Returns:
            Per group of the graph its gates, shape (size,); None where it had none.
        """
        (model,) = self._model
        for handle in self._handles:
            handle.remove()
        with torch.no_grad():
            now = self.now().detach()
            self._now = (now,)
            for tensor in self._layout.tensors:
                owner, _, leaf = tensor.rpartition(".")
                parametrize.remove_parametrizations(model.get_submodule(owner), leaf)
            values = self._layout.split(now)
        self._now = None
        del model._modules[_NAME]
        return values


class _Scaled(nn.Module):
    """A parameter with the gates multiplied in along one dimension or two."""

    def __init__(self, gates: Gates, scaled: list[tuple[int, Tensor]]) -> None:
        super().__init__()
        self._gates = (gates,)
        self._dims = [dim for dim, _ in scaled]
        for number, (_, which) in enumerate(scaled):
            self.register_buffer(f"which{number}", which, persistent=False)

    def forward(self, original: Tensor) -> Tensor:
        values = self._gates[0].now().to(original.dtype)
        values = torch.cat([values.new_ones(1), values])
        for number, dim in enumerate(self._dims):
            shape = [1] * original.dim()
            shape[dim] = -1
            original = original * values[self.get_buffer(f"which{number}")].view(shape)
        return original


class Layout:
    """Which gate multiplies which entries of which parameter.

    starts: per group the number of its first gate, or None where it has none.
    size: how many gates there are.
    tensors: per parameter, pairs of a dimension and for each of its indices the number of its
        gate counted from 1, or 0.
    """

    def __init__(self, graph: Graph, place: Place) -> None:
        self._groups = graph.groups
        self.starts: list[int | None] = []
        self.size = 0
        self.tensors: dict[str, list[tuple[int, Tensor]]] = {}
        found: dict[tuple[str, int], np.typing.NDArray[np.int64]] = {}
        shared = _shared(graph.model)
        for group in graph.groups:
            slots = gate_slots(group, place)
            if not slots or any(slot.tensor in shared for slot in slots):
                self.starts.append(None)
                continue
            self.starts.append(self.size)
            numbers = self.size + 1 + np.arange(group.size)
            for slot in slots:
                length = graph.shapes[slot.tensor][slot.dim]
                which = found.setdefault((slot.tensor, slot.dim), np.zeros(length, np.int64))
                which[slot.index] = numbers[:, None]
            self.size += group.size
        for (tensor, dim), which in found.items():
            device = graph.model.get_parameter(tensor).device
            self.tensors.setdefault(tensor, []).append((dim, torch.from_numpy(which).to(device)))

    def split(self, values: Tensor) -> list[Tensor | None]:
        """A number per gate as a tensor per group, shape (size,); None where it has no gates."""
        return [
            None if start is None else values[start : start + group.size]
            for group, start in zip(self._groups, self.starts, strict=True)
        ]

    def join(self, per_group: list[Tensor | None], fill: float) -> Tensor:
        """A number per channel of each group as one vector, a number per gate."""
        parts = [
            torch.full((group.size,), fill) if values is None else values
            for group, values, start in zip(self._groups, per_group, self.starts, strict=True)
            if start is not None
        ]
        return torch.cat(parts)


def gate_slots(group: Group, place: Place) -> list[Slot]:
    """The parameters that a gate multiplies: of batch norms if there are any, else of layers."""
    if place == "read":
        return group.of_role(Role.CONSUMER)
    return group.of_role(Role.SCALE) + group.of_role(Role.SHIFT) or group.of_role(Role.PRODUCER)


def _shared(model: nn.Module) -> set[str]:
    """Names of parameters that several modules use; only one of the names would get the gate."""
    first: dict[int, str] = {}
    shared = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared.add(first[id(parameter)])
    return shared
