"""Pruning of single weights: which take part, which stay, and zeros that stay zero.

The second kind of method. It removes no channel: it names the weights that stay, and the others
are exactly zero from then on. Weights of convolutions and linear layers take part, as long as
they are trained and not excluded; biases and norms stay whole.

A zero is not a smaller network. A runtime with dense kernels computes with it as with any other
number; what zeros are good for is a file that compresses, or kernels that skip them. Of the
latter, those for the pattern 2:4 are common: of each four weights that follow one another along
the input channels, at most two are not zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune2deploy.channels.groups import matches
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Granularity, Method, Options, Step, Unit

Masks = Mapping[str, Tensor]
"""Per parameter name a bool tensor of its shape; True: the weight stays."""

Pattern = Literal["2:4"]
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weights:
    """The weights that a method may zero, and how many stay.

    model: as it is now. names: of the parameters that take part, in the order of the model.
    share: of all these weights that stays, where no pattern says it.
    pattern: how the weights that stay lie, or None.
    seed: of everything that is random.
    held: masks of earlier rounds; what is False there stays zero.
    """

    model: nn.Module
    names: tuple[str, ...]
    share: float
    pattern: Pattern | None = None
    seed: int = 0
    held: Masks = field(default_factory=dict)

    def scores(self, score: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Score every weight that still stands; the others get minus infinity.

        Args:
            score: of the weights of one layer that still stand, shape (entries,), float32
                or float64.

        Raises:
            MethodError: a weight is not finite.
        """
        found = {}
        for name in self.names:
            weight = self.model.get_parameter(name).detach()
            if not weight.isfinite().all():
                raise MethodError(f"The weights '{name}' hold NaN or inf. Check the checkpoint.")
            weight = weight if weight.dtype == torch.float64 else weight.float()
            stands = torch.ones_like(weight, dtype=torch.bool)
            if name in self.held:
                stands = self.held[name].to(weight.device)
            scores = torch.full_like(weight, -math.inf)
            scores[stands] = score(weight[stands])
            found[name] = scores
        return found


class WeightMethod(Method[Options]):
    """A method that zeroes single weights instead of removing channels.

    Called in this order: `begin`, the hooks of a training, `detach` if there is one before; then
    in each round `masks`, and `restart` if `rounds` is "train".
    """

    granularity: ClassVar[Granularity] = "weight"
    budgets: ClassVar[tuple[Unit, ...]] = ("weights",)

    def score(self, context: Context) -> list[Tensor | None]:
        """Refuse: weights have scores here, channels have none."""
        raise MethodError(
            f"{self.name} keeps single weights and cannot score channels. Get its masks from "
            "prune2deploy.weight_masks, or choose a method for channels, for example l1."
        )

    def begin(self, weights: Weights) -> None:
        """Training of weights.model with the hooks is about to begin; takes the place of attach."""

    @abstractmethod
    def masks(self, weights: Weights) -> dict[str, Tensor]:
        """Say which weights stay.

        Returns:
            Per name of weights.names shape as the parameter, bool; True: it stays.

        Raises:
            MethodError: what is needed is missing.
        """

    def restart(self, weights: Weights, last: bool) -> int:
        """Put the weights where the next training begins, if `rounds` is "train".

        Args:
            last: whether this training is the last one.

        Returns:
            The steps of that training that count as done.
        """
        return 0

    def notes(self) -> list[str]:
        """What the user should know about the run, in sentences."""
        return []


def prunable(model: nn.Module, exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the weights that take part, in the order of the model.

    Args:
        exclude: names or shell patterns of parameters or modules that stay whole.

    Raises:
        MethodError: there are none.
    """
    layers = set()
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            layers.add(id(module.weight))
        elif isinstance(module, nn.MultiheadAttention):
            layers |= {id(getattr(module, name)) for name in _ATTENTION}
    names = tuple(
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in layers
        and parameter.requires_grad
        and not any(matches(name, pattern) for pattern in exclude)
    )
    if not names:
        raise MethodError(
            "The model has no weights that can be zeroed: convolutions and linear layers take "
            "part that are trained (requires_grad) and not in prune.exclude. Check these."
        )
    return names


def count_kept(share: float, total: int) -> int:
    """How many of `total` weights a share keeps: rounded down, at least one."""
    # 100 * 0.8**2 is a little below 64 in floating point.
    return max(1, math.floor(share * total + 1e-9))


def threshold(scores: Tensor, keep: int) -> Tensor:
    """Return the keep-th largest score, exactly. scores: shape (weights,)."""
    return scores.kthvalue(len(scores) - keep + 1).values


def largest(scores: Tensor, keep: int) -> Tensor:
    """Return a mask of exactly the `keep` largest scores.

    Args:
        scores: shape (weights,). Of equal ones the first goes first.
    """
    limit = threshold(scores, keep)
    mask = scores > limit
    ties = (scores == limit).nonzero().flatten()
    missing = keep - int(mask.sum())
    mask[ties[len(ties) - missing :]] = True
    return mask


def two_of_four(scores: Tensor) -> Tensor:
    """Return a mask of the two largest of each four scores that follow one another in dim 1.

    That is how sparse tensor cores want weights: for each output channel and each position of
    the kernel at least two of four input channels are zero.

    Args:
        scores: shape (outputs, inputs, ...), inputs a multiple of 4. Of equal ones the first
            goes first.
    """
    inputs_last = scores.movedim(1, -1)
    fours = inputs_last.reshape(-1, 4)
    # argsort is stable upwards, so the last two are the two that stay.
    order = fours.argsort(dim=1, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    return mask.view(inputs_last.shape).movedim(-1, 1).contiguous()


def takes_pattern(model: nn.Module, name: str) -> bool:
    """Whether 2:4 fits a weight: its dimension 1 is that of the inputs, and a multiple of 4."""
    module = model.get_submodule(name.rpartition(".")[0])
    return not isinstance(module, _ConvTransposeNd) and model.get_parameter(name).shape[1] % 4 == 0


def masks_by(
    scores: Mapping[str, Tensor], weights: Weights, per_layer: bool = False
) -> dict[str, Tensor]:
    """Turn scores into masks that keep what the budget says.

    Args:
        scores: per name shape as the parameter, minus infinity for what is gone already.
        per_layer: the share is that of each layer; else one threshold serves all.
    """
    if weights.pattern is not None:
        return {
            name: two_of_four(found)
            if takes_pattern(weights.model, name)
            else torch.ones_like(found, dtype=torch.bool)
            for name, found in scores.items()
        }
    if per_layer:
        return {
            name: largest(found.flatten(), count_kept(weights.share, found.numel())).view_as(found)
            for name, found in scores.items()
        }
    joined = torch.cat([found.flatten() for found in scores.values()])
    kept = largest(joined, count_kept(weights.share, len(joined)))
    parts = kept.split([found.numel() for found in scores.values()])
    return {
        name: part.view_as(found) for (name, found), part in zip(scores.items(), parts, strict=True)
    }


class MaskKeeper:
    """Keeps weights at zero while the network is trained; hooks of a training.

    With gradients masked, neither momentum nor weight decay has anything to move, as both are
    zero where the weight and its gradient always were; and after each step whatever a momentum
    from before still moved is zero again.

    Args:
        model: whose parameters are masked, in place.
        masks: which weights stay.
        dense_gradients: leave gradients whole, for a method that looks at those of zeros.
    """

    def __init__(self, model: nn.Module, masks: Masks, dense_gradients: bool = False) -> None:
        self._model = model
        self._dense_gradients = dense_gradients
        self.masks = masks

    def apply(self) -> None:
        """Set the weights that do not stay to zero, exactly."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = self._model.get_parameter(name)
                # Not multiplied: that would leave -0, and NaN where there was one.
                weight.masked_fill_(~mask.to(weight.device), 0.0)

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """None."""
        return ()

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """The loss as it is."""
        return loss

    def extra_loss(self) -> Tensor | None:
        """No penalty."""
        return None

    def after_backward(self) -> None:
        """Mask the gradients."""
        if self._dense_gradients:
            return
        for name, mask in self.masks.items():
            gradient = self._model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0.0)

    def after_step(self, step: Step) -> None:
        """Mask the weights."""
        self.apply()


def reinitialise(model: nn.Module, seed: int) -> None:
    """Give every layer new random weights, by PyTorch's own initialisation of that layer.

    Raises:
        MethodError: parameters belong to modules without `reset_parameters`.
    """
    cannot = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if module._parameters and not _resets(module)
    ]
    if cannot:
        raise MethodError(
            f"Only layers with reset_parameters() can start anew, and {', '.join(cannot[:3])} "
            "has none. Write 'start: given' to begin with the weights that the network has."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if _resets(module):
                getattr(module, "reset_parameters")()  # noqa: B009 (nn.Module declares no such)


def _resets(module: nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))
