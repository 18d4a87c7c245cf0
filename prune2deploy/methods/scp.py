"""SCP: channels that a ReLU almost always silences are dropped at random in training, then cut.

Paper: Kang, Han, "Operation-Aware Soft Channel Pruning using Differentiable Masks", ICML 2020,
https://arxiv.org/abs/2007.03938.

In front of the ReLU a channel is about Normal(beta_c, gamma_c^2), so it lies below a small
threshold with the probability cdf_c = Phi((threshold - beta_c) / |gamma_c|). It is dropped with
the probability

    p_c = sigmoid(steepness * (cdf_c - most_silent))

In training every forward pass draws a mask per channel, the keep entry of a relaxed one-hot
(Gumbel-softmax) of (1 - p, p), which multiplies what reads the channel, behind the activation.
The loss gets penalty * sum over channels of beta + scale_weight * |gamma|, which drives shifts
down; the loss reaches gamma and beta through the mask as well. In eval mode a channel is kept if
p < 0.5, and after training what would read the others is zero, which gives the same output.

    score_c = most_silent - cdf_c, above 0 for channels that are kept in eval mode

so a large gamma saves a channel of negative beta only as far as it brings it above zero at
times. Of channels that share several batch norms cdf is the mean. The score needs no training:
it is read from the norms of any network.

The authors train from scratch, 160 epochs with batches of 64, and penalty 5e-5 for ResNets, 3e-5
for DenseNet and 1e-4 for VGG. As in their code the running statistics of a channel whose mask is
off (below a half) stay as they are in that pass. Differs from them: their rule decides how many
channels go, here the budget does. The score believes that a ReLU follows; where none does, as
behind the narrow layers of MobileNetV2, a negative channel is not silent: exclude those layers.
Channels without a batch norm are always on, and kept whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.gates import Gates, Layout
from prune2deploy.methods.common.readings import require_some, rows

_SMALLEST = 1e-6
"""|gamma| below this counts as this, or a constant channel would have no gradient but NaN."""


def silence(gamma: Tensor, beta: Tensor, threshold: float) -> Tensor:
    """Return the probability that Normal(beta, gamma^2) is below the threshold; shape as given."""
    cdf: Tensor = torch.special.ndtr((threshold - beta) / gamma.abs().clamp_min(_SMALLEST))
    return cdf


def drop_logits(cdf: Tensor, most_silent: float, steepness: float) -> Tensor:
    """Return log p / (1 - p) of the probability p that a channel is dropped; shape as given."""
    return steepness * (cdf - most_silent)


def relaxed_masks(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return the keep entry of a relaxed one-hot of (keep, drop), in (0, 1).

    Args:
        logits: of dropping, any shape. uniform: in (0, 1), same shape. The difference of two
            Gumbel numbers is logistic, so one number per channel is enough.
    """
    return ((uniform.logit() - logits) / temperature).sigmoid()


class ScpOptions(MethodOptions):
    """Options of SCP."""

    penalty: float = Field(5e-5, ge=0, description="Weight of the penalty on shifts and scales.")
    scale_weight: float = Field(2.0, ge=0, description="What |gamma| counts beside beta in it.")
    threshold: float = Field(0.05, ge=0, description="A channel below this is silent.")
    most_silent: float = Field(
        0.95, gt=0, lt=1, description="Kept are channels that are silent with a lower probability."
    )
    steepness: float = Field(
        20.0, gt=0, description="How sharply the probability to be dropped rises there."
    )
    temperature: float = Field(
        0.5, gt=0, description="Of the masks; the lower, the closer to 0 and 1 they are."
    )


class Scp(Method[ScpOptions]):
    """Probability that a ReLU lets a channel through, after training with random masks."""

    name = "scp"
    summary = "probability that its ReLU lets it through, after training with random masks"
    source = (
        "Kang, Han: Operation-Aware Soft Channel Pruning using Differentiable Masks, ICML 2020, "
        "https://arxiv.org/abs/2007.03938"
    )
    cost = "one training run"
    options = ScpOptions
    needs_training = True
    normalisation = "none"  # probabilities

    _graph: Graph | None = None
    _gates: Gates | None = None
    _statistics: tuple[_Statistics, ...] = ()

    def attach(self, graph: Graph) -> None:
        """Mask what reads the channels, and hold the statistics of those that are off."""
        layout = Layout(graph, "read")
        gates = Gates(graph, {}, lambda gates: self._masks(graph, layout, gates), "read")
        self._graph, self._gates = graph, gates
        self._statistics = tuple(
            _Statistics(norm, which, gates) for norm, which in _norms_with_statistics(graph, layout)
        )

    def extra_loss(self) -> Tensor | None:
        """penalty * sum of beta + scale_weight * |gamma| over the norms of channels that can go."""
        if self._graph is None:
            return None
        sums = [
            beta.sum() + self.settings.scale_weight * gamma.abs().sum()
            for group in self._graph.groups
            for gamma, beta in _norms(group, self._graph.model.get_parameter)
        ]
        return self.settings.penalty * torch.stack(sums).sum() if sums else None

    def detach(self) -> None:
        """Zero what reads the channels that are off in eval mode."""
        for statistics in self._statistics:
            statistics.detach()
        if self._gates is not None:
            self._gates.fold()
        self._graph = self._gates = None
        self._statistics = ()

    def score(self, context: Context) -> list[Tensor | None]:
        """most_silent less the mean probability over the norms of a group to be silent."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            cdf = self._silence(group, context.tensor)
            scores.append(None if cdf is None else self.settings.most_silent - cdf)
        return require_some(scores, self.name, "none has a batch norm with a scale")

    def _silence(self, group: Group, tensor: Callable[[str], Tensor]) -> Tensor | None:
        parts = [
            silence(gamma, beta, self.settings.threshold).mean(dim=1)
            for gamma, beta in _norms(group, tensor)
        ]
        return torch.stack(parts).mean(dim=0) if parts else None

    def _masks(self, graph: Graph, layout: Layout, gates: Gates) -> Tensor:
        """The masks of one forward pass, a number per gate."""
        options = self.settings
        parts = [self._silence(group, graph.model.get_parameter) for group in graph.groups]
        # Channels without a norm are never dropped.
        device = next(graph.model.parameters()).device
        never = [torch.full((g.size,), -torch.inf, device=device) for g in graph.groups]
        logits = [
            none if cdf is None else drop_logits(cdf, options.most_silent, options.steepness)
            for cdf, none in zip(parts, never, strict=True)
        ]
        together = layout.join(list(logits), 0.0)
        if not gates.training:
            return (together < 0).to(together.dtype)
        uniform = torch.rand_like(together).clamp(1e-6, 1 - 1e-6)
        return relaxed_masks(together, uniform, options.temperature)


class _Statistics:
    """The running statistics of a batch norm, kept as they are where the mask of a pass is off."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, which: Tensor, gates: Gates) -> None:
        self._gates = gates
        self._which = which
        self._before: list[Tensor] = []
        self._handles = (
            norm.register_forward_pre_hook(self._remember),
            norm.register_forward_hook(self._restore, always_call=True),
        )

    def _remember(self, norm: nn.Module, inputs: Any) -> None:
        self._before = [b.clone() for b in _running(norm)] if norm.training else []

    @torch.no_grad()
    def _restore(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        if not self._before:
            return
        masks = self._gates.now()
        off = torch.cat([masks.new_ones(1), masks])[self._which.to(masks.device)] < 0.5
        for now, before in zip(_running(norm), self._before, strict=True):
            # Past autograd, which keeps these for the backward pass of eval mode; this is none.
            now.data.copy_(torch.where(off, before, now))
        self._before = []

    def detach(self) -> None:
        """Let the statistics run."""
        for handle in self._handles:
            handle.remove()


def _running(norm: nn.Module) -> list[Tensor]:
    return [norm.get_buffer("running_mean"), norm.get_buffer("running_var")]


def _norms(group: Group, tensor: Callable[[str], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Scale and shift of each batch norm of a group, of shape (channels, copies)."""
    shifts = {_owner(slot): slot for slot in group.of_role(Role.SHIFT)}
    found = []
    for slot in group.of_role(Role.SCALE):
        gamma = rows(tensor(slot.tensor), slot)
        shift = shifts.get(_owner(slot))
        beta = torch.zeros_like(gamma) if shift is None else rows(tensor(shift.tensor), shift)
        found.append((gamma, beta))
    return found


def _owner(slot: Slot) -> str:
    return slot.tensor.rpartition(".")[0]


def _norms_with_statistics(
    graph: Graph, layout: Layout
) -> list[tuple[nn.modules.batchnorm._BatchNorm, Tensor]]:
    """Batch norms, and per channel of theirs the number of its gate counted from 1, or 0."""
    numbers: dict[str, Tensor] = {}
    for group, start in zip(graph.groups, layout.starts, strict=True):
        if start is None:
            continue
        for slot in group.of_role(Role.SCALE):
            blank = torch.zeros(graph.shapes[slot.tensor], dtype=torch.long)
            which = numbers.setdefault(_owner(slot), blank)
            which[torch.from_numpy(slot.index)] = 1 + start + torch.arange(group.size)[:, None]
    norms = ((graph.model.get_submodule(name), which) for name, which in numbers.items())
    return [
        (norm, which)
        for norm, which in norms
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    ]


METHOD = Scp
