"""GAL: a masked network learns to pass for the whole one, without labels.

Paper: Lin, Ji, Yan, Zhang, Cao, Ye, Huang, Doermann, "Towards Optimal Structured CNN Pruning via
Generative Adversarial Learning", CVPR 2019, https://arxiv.org/abs/1903.09291.

Every channel has a mask m that multiplies its batch norms (or filters). The teacher is the
network as it was before, D a discriminator that looks at answers, of layers 128, 256, 128 and 1
wide. With BCE the binary cross-entropy of D's answer,

    network:  similarity * MSE(teacher, network) + BCE(D(network), 1) + penalty * |m|_1
    D:        BCE(D(teacher), 1) + BCE(D(network), 0) + BCE(D(network), 1)

The task's own loss is not used. D is trained by SGD with the recipe's learning rate. Masks move
every 200 steps, by accelerated proximal gradient (FISTA) on that step's gradient g:

    a' = (1 + sqrt(1 + 4 a^2)) / 2        y = m + (a - 1) / a' * (m - m_before)
    m  = max(0, soft(y - lr * g, lr * penalty)),   soft(x, t) = sign(x) * max(|x| - t, 0)

with a = 1 at first and again when the learning rate falls to less than half. At the end m is
multiplied into the norms, and score_c = m, zero for channels that are gone; those that the budget
keeps all the same are opened before the cut.

Differs from the authors' code: masks start at 1, not at random, so that a trained network stays
as it is, and the penalty is ours for that reason; channels, also of residual networks, have masks
where the code takes whole blocks there; channels joined by an addition share one. The code has
the L1 term twice (in the loss and in the step above) and applies a sigmoid twice;
`official_quirks` does so, too. Without training, channels are ranked by the norms of their
filters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prune2deploy.channels import Graph
from prune2deploy.methods.base import MethodOptions, Step
from prune2deploy.methods.common.gated import Gated
from prune2deploy.methods.common.teacher import Teacher


class Fista:
    """Accelerated proximal gradient for masks that stay at or above zero.

    Args:
        masks: moved in place.
        penalty: weight of their sum.
    """

    def __init__(self, masks: Tensor, penalty: float) -> None:
        self._masks = masks
        self._penalty = penalty
        self._before = masks.detach().clone()
        self._a = 1.0

    def restart(self) -> None:
        """Forget the momentum."""
        self._a = 1.0

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> float:
        """Move the masks; returns the coefficient of the momentum."""
        following = (1 + math.sqrt(1 + 4 * self._a**2)) / 2
        momentum = (self._a - 1) / following
        m = self._masks
        x = m + momentum * (m - self._before.to(m)) - lr * gradient
        shrunk = x.sign() * (x.abs() - lr * self._penalty).clamp_min(0.0)
        self._before = m.detach().clone()
        m.copy_(shrunk.clamp_min(0.0))
        self._a = following
        return momentum


def discriminator(classes: int) -> nn.Sequential:
    """Return a network that tells the teacher's answers (1) from others (0), without sigmoid."""
    layers: list[nn.Module] = []
    for before, width in ((classes, 128), (128, 256), (256, 128)):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 1))


class GalOptions(MethodOptions):
    """Options of GAL."""

    penalty: float = Field(
        0.1,
        ge=0,
        description="Weight of the masks' sum; the authors take 0.6 to 0.8 for blocks and 0.001 to "
        "0.01 for channels. Lower it where all masks of a layer reach zero.",
    )
    similarity: float = Field(
        1.0, ge=0, description="Weight of the squared difference of the answers."
    )
    every: int = Field(200, ge=1, description="Steps from one step of the masks to the next.")
    official_quirks: bool = Field(
        False, description="Count the penalty and the discriminator's sigmoid twice, as published."
    )


class Gal(Gated[GalOptions]):
    """Masks of a network that learns to pass for the whole one."""

    name = "gal"
    summary = "mask in a network that learns, without labels, to pass for the whole one"
    source = (
        "Lin, Ji, Yan, Zhang, Cao, Ye, Huang, Doermann: Towards Optimal Structured CNN Pruning "
        "via Generative Adversarial Learning, CVPR 2019, https://arxiv.org/abs/1903.09291"
    )
    cost = "one training run"
    options = GalOptions
    place = "made"

    _teacher: Teacher | None = None
    _judge: nn.Module | None = None
    _answers: tuple[Tensor, Tensor] | None = None

    def attach(self, graph: Graph) -> None:
        """Copy the network as the teacher and put masks of one in."""
        self._teacher = Teacher(graph.model, self.name)
        self.gate(graph, 1.0, lambda gates: gates.get_parameter("learned"))
        self._fista = Fista(self.numbers, self.settings.penalty)
        self._answers, self._lr = None, 0.0
        # Now, and not with the first answer: a training that goes on needs it to be there.
        self._judge = discriminator(self._teacher.classes(graph.inputs))
        self._optimizer = torch.optim.SGD(
            self._judge.parameters(), lr=0.0, momentum=0.9, weight_decay=2e-4
        )

    def whole_loss(self, loss: Tensor, images: Tensor, output: Any) -> Tensor:
        """How far the answers are from the teacher's, and how well they deceive."""
        assert self._teacher is not None, "attach comes first"
        assert self._judge is not None
        teacher, student = self._teacher.answers(images, output)
        self._judge.to(student.device)
        self._answers = (teacher, student.detach())
        total = self.settings.similarity * F.mse_loss(student, teacher)
        total = total + self._verdict(student, 1.0)
        if self.settings.official_quirks:
            total = total + self.settings.penalty * self.numbers.abs().sum()
        return total

    def _verdict(self, answers: Tensor, truth: float) -> Tensor:
        """Binary cross-entropy of what the discriminator says."""
        assert self._judge is not None
        said = self._judge(answers)
        if self.settings.official_quirks:
            said = said.sigmoid()
        return F.binary_cross_entropy_with_logits(said, torch.full_like(said, truth))

    def after_step(self, step: Step) -> None:
        """Move the masks when it is time, and the discriminator."""
        masks = self.numbers
        if step.lr < 0.5 * self._lr:
            self._fista.restart()
        self._lr = step.lr
        if masks.grad is not None and step.number % self.settings.every == 0:
            self._fista.step(masks.grad, step.lr)
        masks.grad = None
        if self._answers is None:
            return
        teacher, student = self._answers
        self._optimizer.param_groups[0]["lr"] = step.lr
        # Gradients of the network's own loss are left in it, too.
        self._optimizer.zero_grad()
        told = self._verdict(teacher, 1.0) + self._verdict(student, 0.0)
        (told + self._verdict(student, 1.0)).backward()
        self._optimizer.step()
        self._answers = None

    def detach(self) -> None:
        """Write the masks down and let the other networks go."""
        super().detach()
        self._teacher = self._judge = self._answers = None


METHOD = Gal
