"""Gates: a number per channel that is learned, multiplied into the network's own parameters.

No module is put between others. A gate multiplies the parameters that make its channel (the
scale and shift of its batch norms, or the filter and bias where there is none), or the weights
that read it; both are the same as multiplying the channel itself, the first in front of the
activation and the second behind it. So a gated network is the network with other parameters:
`fold` writes them down, and what is left is the plain model again, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.channels.blocks import Block
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
        layout: of the gates, where they are not one per channel.
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
        layout: Layout | BlockLayout | None = None,
    ) -> None:
        super().__init__()
        layout = Layout(graph, place) if layout is None else layout
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

    def forward(self, value: Any) -> Any:
        """Pass on what comes: a Sequential calls all its parts, so this one too, as the last."""
        return value

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


class ScaledNorm(nn.Module):
    """A batch norm rewritten as g * (normalised + b): its scale g gates the shift as well.

    A channel whose g is zero is then zero, where a plain norm would leave its shift. The scale
    stays a parameter; b takes the place of the shift, and starts as shift / g.

    Args:
        norm: gets the new shift.
        name: of its scale in the model.
        gated: which channels are rewritten, shape (channels,), bool.
        limit: b starts between -limit and limit, or a tiny scale would make it huge. So a
            channel with a larger ratio changes its output.
    """

    gated: Tensor

    def __init__(
        self, norm: nn.modules.batchnorm._BatchNorm, name: str, gated: Tensor, limit: float
    ) -> None:
        super().__init__()
        # In a tuple, or norm and this would be parts of one another.
        self._norm = (norm,)
        self._limit = limit
        self.name = name
        self.register_buffer("gated", gated, persistent=False)
        parametrize.register_parametrization(norm, "bias", self)

    @property
    def norm(self) -> nn.modules.batchnorm._BatchNorm:
        """The batch norm."""
        return self._norm[0]

    def forward(self, shift: Tensor) -> Tensor:
        """The shift that the norm adds."""
        return torch.where(self.gated, shift * self.norm.weight, shift)

    def right_inverse(self, shift: Tensor) -> Tensor:
        """What to start from, so that the norm adds this shift."""
        ratio = (shift / self.norm.weight).nan_to_num(0.0).clamp(-self._limit, self._limit)
        return torch.where(self.gated, ratio, shift)

    def fold(self) -> None:
        """Write the shift down that the norm adds now; what is left is the plain norm."""
        parametrize.remove_parametrizations(self.norm, "bias")


def scaled_norms(graph: Graph, limit: float) -> list[ScaledNorm]:
    """Rewrite the batch norms of channels that can go; other channels of theirs stay plain.

    Raises:
        MethodError: there are none.
    """
    gated: dict[str, Tensor] = {}
    shared = _shared(graph.model)
    for slot in (slot for group in graph.groups for slot in group.of_role(Role.SCALE)):
        norm = graph.model.get_submodule(slot.tensor.rpartition(".")[0])
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and slot.tensor not in shared:
            device = norm.weight.device
            start = torch.zeros(len(norm.weight), dtype=torch.bool, device=device)
            mine = gated.setdefault(slot.tensor, start)
            mine[torch.from_numpy(slot.index.reshape(-1)).to(device)] = True
    if not gated:
        raise MethodError(
            "No channel that can go has a batch norm with a scale and a shift, so none can be "
            "gated by one. Choose another method, for example l1."
        )
    found = []
    for name, mine in gated.items():
        module = graph.model.get_submodule(name.rpartition(".")[0])
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        found.append(ScaledNorm(module, name, mine, limit))
    return found


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


class BlockLayout:
    """One gate per residual block, multiplied into the layer that its branch ends with.

    size, tensors: as of `Layout`.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self.size = len(blocks)
        self.tensors: dict[str, list[tuple[int, Tensor]]] = {}
        for number, block in enumerate(blocks, 1):
            for leaf, parameter in model.get_submodule(block.last).named_parameters(recurse=False):
                which = torch.full((len(parameter),), number, device=parameter.device)
                self.tensors[f"{block.last}.{leaf}"] = [(0, which)]

    def split(self, values: Tensor) -> list[Tensor | None]:
        """A number per gate as a tensor per block."""
        return list(values.split(1))


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
