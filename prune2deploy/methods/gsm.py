"""GSM: in each step only the weights that matter most for the loss learn; the others fade.

Paper: Ding, Ding, Zhou, Guo, Han, Liu, "Global Sparse Momentum SGD for Pruning Very Deep Neural
Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12778.

The weights of all convolutions and linear layers form one vector of N. In each step the
Q = floor(share * N) with the largest

    m_i = |w_i * dL/dw_i|

are active, those tied with the last of them too. The others get a gradient of zero, so that with
v = beta v + wd w + active * gradient and w = w - lr v only weight decay moves them, which momentum
makes 1 / (1 - beta) times as strong. Biases and norms learn as usual. At the end the share with
the largest |w| stays, of all layers together; the paper loses nothing there, as the rest is
almost 0, and does not train on.

The optimizer is that of `prune.train`. The paper, for ResNet-56: keep 0.10, momentum 0.98, lr
0.005 divided by ten after 400 and 500 of 600 epochs, weight decay 1e-4, from a trained network.
Set momentum: 0.98 and nesterov: false there: with the usual 0.9 and in a short training the
passive weights do not get near 0, and zeroing them costs accuracy. Not verified: its
accuracies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune2deploy.errors import MethodError
from prune2deploy.methods.base import MethodOptions
from prune2deploy.methods.common.weights import (
    WeightMethod,
    Weights,
    count_kept,
    masks_by,
    threshold,
)


def active(weights: Tensor, gradients: Tensor, count: int) -> Tensor:
    """Return which weights learn in this step: bool, shape (weights,).

    Args:
        weights, gradients: shape (weights,). count: Q; ties with the last one are active too.
    """
    metric = (weights * gradients).abs()
    return metric >= threshold(metric, count)


class Gsm(WeightMethod[MethodOptions]):
    """Magnitude of weights after training in which few learn at a time."""

    name = "gsm"
    summary = "magnitude of the weight, after training in which the others only decay"
    source = (
        "Ding, Ding, Zhou, Guo, Han, Liu: Global Sparse Momentum SGD for Pruning Very Deep Neural "
        "Networks, NeurIPS 2019, https://arxiv.org/abs/1909.12778"
    )
    cost = "one training run"
    needs_training = True
    rounds = None

    _weights: Weights | None = None

    def begin(self, weights: Weights) -> None:
        """Remember what is trained."""
        self._weights = weights

    def detach(self) -> None:
        """Forget it."""
        self._weights = None

    def after_backward(self) -> None:
        """Keep the gradients of active weights only."""
        if self._weights is None:
            raise MethodError("gsm: training began without begin(weights). Call it first.")
        parameters = [self._weights.model.get_parameter(name) for name in self._weights.names]
        trained = [(p, p.grad) for p in parameters if p.grad is not None]
        # A weight that the loss did not reach has a metric of 0 and cannot be active.
        total = sum(p.numel() for p in parameters)
        with torch.no_grad():
            joined = torch.cat([p.reshape(-1).float() for p, _ in trained])
            gradients = torch.cat([g.reshape(-1).float() for _, g in trained])
            count = min(count_kept(self._weights.share, total), len(joined))
            parts = active(joined, gradients, count).split([g.numel() for _, g in trained])
            for (_, gradient), part in zip(trained, parts, strict=True):
                gradient.masked_fill_(~part.view(gradient.shape), 0.0)

    def masks(self, weights: Weights) -> dict[str, Tensor]:
        """Keep the weights with the largest magnitudes of all layers together."""
        return masks_by(weights.scores(Tensor.abs), weights)


METHOD = Gsm
