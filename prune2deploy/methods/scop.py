"""SCOP: a channel matters as far as real features serve the task better than knockoffs do.

Paper: Tang, Wang, Xu, Tao, Xu, Xu, Xu, "SCOP: Scientific Control for Reliable Neural Network
Pruning", NeurIPS 2020, https://arxiv.org/abs/2010.10732; read in the authors' code.

A batch holds real images and as many knockoff images, which say nothing of the labels. In front
of every batch norm

    real half <- s * real + (1 - s) * knockoff,    knockoff half unchanged

with a number s in [0, 1] per channel, 0.5 at first. Only s is trained, on the task's loss of the
real half: Adam with rate 0.004 and betas (0.5, 0.9), s clamped after each step. The weights are
frozen and the batch norms take the statistics of the batch, as in training.
score_c = |gamma_c| * (s_c - (1 - s_c)), comparable over the network; where several norms share
channels, their mean. Before any training s is taken for 1, as if all knockoffs were useless,
so that the score is |gamma|.

Knockoff images: `permutation` takes other images of the batch. They have the distribution of
the real ones and are independent of the label, but do not have the swap property that the
paper's theory asks for. `generator` draws them from a small DCGAN that learns the training
images in the first part of the training, in which s stays as it is. The paper's generator is
trained beforehand, on its own.

Differs from the paper: the running statistics of the norms stay as they were, so that the
network after the training is the one before it, bit for bit (the paper renews them after the
cut: recalibrate in a recipe); channels tied by residual additions share one decision. Between
the rounds of an iterative schedule only s is trained, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from prune2deploy.channels import Graph, Role
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions, Step
from prune2deploy.methods.common.readings import require_some, rows

_NAME = "prune2deploy_knockoffs"
_NOISE = 128


def mixed(features: Tensor, share: Tensor) -> Tensor:
    """Mix knockoffs into the real half of a batch.

    Args:
        features: shape (2 * images, channels, ...), the real half first.
        share: s, shape (channels,).

    Returns:
        The same shape: s * real + (1 - s) * knockoff, and the knockoffs as they are.
    """
    real, knockoff = features.chunk(2)
    s = share.view(1, -1, *[1] * (features.dim() - 2)).to(features.dtype)
    return torch.cat([s * real + (1 - s) * knockoff, knockoff])


def control_score(gamma: Tensor, share: Tensor) -> Tensor:
    """Return |gamma| * (s - (1 - s)), any one shape."""
    return gamma.abs() * (share - (1 - share))


def permuted(images: Tensor) -> Tensor:
    """The images in another order in which, if there are two or more, none keeps its place."""
    order = torch.randperm(len(images))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return images[partner.to(images.device)]


class ScopOptions(MethodOptions):
    """Options of SCOP."""

    knockoff: Literal["permutation", "generator"] = Field(
        "permutation",
        description="Where knockoff images come from: other images of the batch, or a generator "
        "that learns the training images first.",
    )
    learn: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the training in which the generator learns, before the channels "
        "are compared; without effect on permutation.",
    )
    rate: float = Field(0.004, gt=0, description="Learning rate of Adam on s.")


class Scop(Method[ScopOptions]):
    """How much better real features serve than knockoffs, times the batch-norm scale."""

    name = "scop"
    summary = "batch-norm scale times how much real features serve better than knockoffs"
    source = (
        "Tang, Wang, Xu, Tao, Xu, Xu, Xu: SCOP: Scientific Control for Reliable Neural Network "
        "Pruning, NeurIPS 2020, https://arxiv.org/abs/2010.10732"
    )
    cost = "one training run"
    options = ScopOptions
    needs_training = True
    normalisation = "none"  # scale and s mean the same in every layer

    def __init__(self, settings: ScopOptions) -> None:
        super().__init__(settings)
        self._control: _Control | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._generator: _Generator | None = None
        self._learning = False
        self._shares: dict[str, Tensor] = {}

    def attach(self, graph: Graph) -> None:
        """Freeze the weights, and mix knockoffs in front of every norm of channels that can go."""
        scales = [slot.tensor for group in graph.groups for slot in group.of_role(Role.SCALE)]
        if not scales:
            raise MethodError(
                f"{self.name} mixes features in front of batch norms, and no channel that can go "
                "has one with a scale. Choose another method, for example l1."
            )
        self._learning = self.settings.knockoff == "generator"
        self._generator = _Generator() if self._learning else None
        self._control = _Control(graph.model, list(dict.fromkeys(scales)), self._knockoffs)
        self._optimizer = torch.optim.Adam(
            self._control.shares, lr=self.settings.rate, betas=(0.5, 0.9)
        )

    def _knockoffs(self, images: Tensor) -> Tensor:
        return permuted(images) if self._generator is None else self._generator.like(images)

    def own_parameters(self) -> Sequence[nn.Parameter]:
        """The numbers s."""
        return () if self._control is None else list(self._control.shares)

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """Leave the loss alone; the generator learns the images while it is its turn."""
        if self._generator is not None and self._learning:
            self._generator.learn(images)
        return loss

    def after_step(self, step: Step) -> None:
        """Move s, unless the generator is still learning."""
        if self._control is None or self._optimizer is None:
            return
        if not self._learning:
            self._optimizer.step()
            with torch.no_grad():
                for share in self._control.shares:
                    share.clamp_(0, 1)
        self._optimizer.zero_grad()
        if step.progress >= self.settings.learn:
            self._learning = False

    def detach(self) -> None:
        """Keep s, and leave the model as it was."""
        if self._control is not None:
            self._shares = self._control.remove()
        self._control = self._optimizer = self._generator = None

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean over the batch norms of a group of |gamma| * (s - (1 - s))."""
        scores: list[Tensor | None] = []
        for group in context.graph.groups:
            parts = []
            for slot in group.of_role(Role.SCALE):
                gamma = context.tensor(slot.tensor)
                share = self._share(slot.tensor, gamma)
                parts.append(rows(control_score(gamma, share), slot).mean(dim=1))
            scores.append(torch.stack(parts).mean(dim=0) if parts else None)
        return require_some(scores, self.name, "none has a batch norm with a scale")

    def _share(self, name: str, gamma: Tensor) -> Tensor:
        if not self._shares:
            return torch.ones_like(gamma)
        share = self._shares.get(name)
        if share is None or len(share) != len(gamma):
            found = "none" if share is None else f"{len(share)}"
            raise MethodError(
                f"{self.name} was trained on a network with other channels: '{name}' has "
                f"{len(gamma)} and {found} were learned. Train with its hooks again after "
                "each cut (prune.schedule.finetune_epochs above 0)."
            )
        return share.to(gamma)


class _Control(nn.Module):
    """The numbers s of a model's norms; a part of the model as long as it trains."""

    def __init__(self, model: nn.Module, scales: list[str], knockoffs: Any) -> None:
        super().__init__()
        self._scales = scales
        self._knockoffs = knockoffs
        # In tuples, or they would be registered as parts of this module.
        self._model = (model,)
        self._frozen = tuple(p for p in model.parameters() if p.requires_grad)
        self._norms = tuple(
            (m, m.momentum, None if m.num_batches_tracked is None else int(m.num_batches_tracked))
            for m in model.modules()
            if isinstance(m, _BatchNorm)
        )
        self._joined = False
        self.shares = nn.ParameterList(
            nn.Parameter(torch.full_like(model.get_parameter(n), 0.5)) for n in scales
        )
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        for norm, _, _ in self._norms:
            norm.momentum = 0.0  # the running statistics stay
        self._handles = [
            model.register_forward_pre_hook(self._join),
            model.register_forward_hook(self._part, always_call=True),
        ]
        for number, name in enumerate(scales):
            module = model.get_submodule(name.rpartition(".")[0])
            self._handles.append(
                module.register_forward_pre_hook(functools.partial(self._mix, number))
            )
        model.add_module(_NAME, self)

    def _join(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not model.training:
            return None
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise MethodError(
                "scop joins knockoff images to the batch, and this model is not called with one "
                "tensor of images. Choose another method."
            )
        self._joined = True
        return (torch.cat([inputs[0], self._knockoffs(inputs[0])]),)

    def _mix(self, number: int, norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (mixed(inputs[0], self.shares[number]),) if self._joined else None

    def _part(self, model: nn.Module, inputs: Any, output: Any) -> Any:
        joined, self._joined = self._joined, False
        if not joined or output is None:  # None: the forward pass failed
            return output
        return tree_map(lambda x: x.chunk(2)[0] if isinstance(x, Tensor) else x, output)

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes: an nn.Sequential calls all its parts in turn, and this is one."""
        return x

    def remove(self) -> dict[str, Tensor]:
        """Leave the plain model behind; return s per name of a scale."""
        (model,) = self._model
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for norm, momentum, seen in self._norms:
            norm.momentum = momentum
            if seen is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(seen)
        del model._modules[_NAME]
        return dict(zip(self._scales, (s.detach().cpu() for s in self.shares), strict=True))


class _Generator:
    """A small DCGAN that learns images as they come; built for the first it sees."""

    def __init__(self) -> None:
        self._nets: tuple[nn.Module, nn.Module] | None = None
        self._steps: tuple[torch.optim.Optimizer, ...] = ()

    def _built(self, images: Tensor) -> tuple[nn.Module, nn.Module]:
        if self._nets is None:
            _, channels, height, width = images.shape
            # What tanh gives is stretched to the range of the normalised images.
            low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
            maker = _Maker(channels, height, width, low, high).to(images.device)
            judge = nn.Sequential(
                nn.Conv2d(channels, 32, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(32, 64, 4, 2, 1),
                nn.BatchNorm2d(64),
                nn.LeakyReLU(0.2),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(64 * 16, 1),
            ).to(images.device)
            self._nets = maker, judge
            self._steps = tuple(
                torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999))
                for net in self._nets
            )
        return self._nets

    @torch.no_grad()
    def like(self, images: Tensor) -> Tensor:
        """As many made-up images."""
        return self._made(images)

    def _made(self, images: Tensor) -> Tensor:
        maker, _ = self._built(images)
        noise = torch.randn(len(images), _NOISE, device=images.device)
        made: Tensor = maker(noise)
        return made.to(images.dtype)

    def learn(self, images: Tensor) -> None:
        """One step of the one that tells real from made up, and one of the one that makes."""
        _, judge = self._built(images)
        made = self._made(images)
        told = F.softplus(-judge(images)).mean() + F.softplus(judge(made.detach())).mean()
        self._move(1, told)
        self._move(0, F.softplus(-judge(made)).mean())

    def _move(self, number: int, loss: Tensor) -> None:
        self._steps[number].zero_grad()
        loss.backward()
        self._steps[number].step()


class _Maker(nn.Module):
    """From noise to images, at a quarter of the size and twice doubled."""

    low: Tensor
    high: Tensor

    def __init__(self, channels: int, height: int, width: int, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self._size = height, width
        self._small = -(-height // 4), -(-width // 4)
        self.start = nn.Linear(_NOISE, 64 * self._small[0] * self._small[1])
        self.body = nn.Sequential(
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 4, 2, 1),
            nn.Tanh(),
        )
        self.register_buffer("low", low.view(1, -1, 1, 1))
        self.register_buffer("high", high.view(1, -1, 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Return images, shape (count, channels, height, width)."""
        small = self.start(noise).unflatten(1, (64, *self._small))
        made: Tensor = self.body(small)[..., : self._size[0], : self._size[1]]
        return self.low + (self.high - self.low) * (made + 1) / 2


METHOD = Scop
