"""ThiNet: channels go whose contributions to the next layer add up to the least.

Paper: Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network
Compression", ICCV 2017, https://arxiv.org/abs/1707.06342.

A layer is judged by what reads it. One output value of the reading layer, without its bias, is
the sum of one number per channel, x_c = sum over the kernel of W[o, c] * window_c. Values are
sampled: random images, filters o and locations make the rows of X, shape (samples, channels).
The set T that is discarded shall have the least |sum over T of X_c|; it grows by the channel
that leaves this smallest, one after the other. score_c = the place of c in that order over the
number of channels, from 1 / channels for the first to go to 1, so that of every group the same
share goes, as in the paper. What is left is reweighted: the weights that read channel c are
multiplied by w_c, the least squares solution of X_S w = X 1 over the channels S that stay.

Both need G = X^T X only, which is added up in float64, while X is never stored: with h = G 1_T,
a candidate's value is 1_T^T G 1_T + 2 h_c + G_cc.

Where several layers read a group their matrices are added, each divided by its trace so that
large weights do not outvote others; the least squares are each layer's own. Layers that neither
are convolutions or linear nor make new channels of the group's (depthwise and transposed
convolutions, say) do not count.

Defaults: the paper takes 10 images per class and 10 values of each. Filters are drawn by the
rank of their norms, so that the order of a layer's filters does not matter; the draws are the
same every time. Differs from the paper: it prunes and trains on layer by layer, where here all
layers are judged on the original network at once; and 1e-6 of the mean diagonal is added to G in
the least squares, which pulls w towards 1 where samples say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Role
from prune2deploy.channels.activations import Contraction, read_contractions, reading_sites
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, IndexTable, Method, MethodOptions
from prune2deploy.methods.common.readings import require_some, training_images

RIDGE = 1e-6
"""Share of the mean diagonal of G that is added to it in the least squares."""


def contributions(layer: Contraction, count: int, random: torch.Generator) -> Tensor:
    """Sample output values of a layer, each taken apart into what its inputs contribute.

    Args:
        layer: a convolution or matrix product. Not modified.
        count: how many values; each of a random row of the batch, filter and location.

    Returns:
        Shape (count, inputs), float64. A row adds up to an output value without its bias.
    """
    weight = layer.weight.flatten(2) if layer.weight.dim() > 2 else layer.weight[:, :, None]
    outputs, per_group, _ = weight.shape
    rows = torch.randint(len(layer.read), (count,), generator=random)
    by_norm = weight.double().flatten(1).norm(dim=1).argsort(stable=True)
    chosen = by_norm[torch.randint(outputs, (count,), generator=random).to(by_norm.device)]
    read, places = _windows(layer, count, random)
    # Of a grouped convolution, a filter reads the channels of its own group only.
    group = torch.div(chosen, outputs // layer.groups, rounding_mode="floor")
    inputs = group[:, None] * per_group + torch.arange(per_group, device=group.device)
    device = read.device
    window = read[rows.to(device)[:, None, None], inputs[:, :, None], places.to(device)[:, None]]
    parts = (window.double() * weight[chosen].double()).sum(dim=2)
    found = torch.zeros(count, read.shape[1], dtype=torch.float64, device=device)
    return found.scatter_(1, inputs, parts)


def _windows(layer: Contraction, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The padded input, its space flattened, and the places of random windows in it.

    Returns:
        Shapes (batch, inputs, places) and (count, kernel).
    """
    padded = F.pad(layer.read, [p for p in reversed(layer.padding) for _ in range(2)])
    kernel = layer.weight.shape[2:]
    places = torch.zeros(count, 1, dtype=torch.int64)
    space = padded.shape[2:]
    for length, width, stride, dilation in zip(
        space, kernel, layer.stride, layer.dilation, strict=True
    ):
        steps = (length - dilation * (width - 1) - 1) // stride + 1
        first = torch.randint(steps, (count, 1), generator=random) * stride
        along = first + dilation * torch.arange(width)
        places = (places[:, :, None] * length + along[:, None, :]).flatten(1)
    return padded.flatten(2) if space else padded[:, :, None], places


def discard_order(gram: Tensor) -> list[int]:
    """Return the channels in the order in which they go.

    Each is the one that adds least to the squared norm of what has been discarded; of equals
    the first.

    Args:
        gram: X^T X, shape (channels, channels), float64.
    """
    values = gram.cpu().numpy()
    # 2 h_c + G_cc; what T gives by itself is the same for all candidates.
    added = values.diagonal().copy()
    order = []
    for _ in range(len(added)):
        goes = int(added.argmin())
        order.append(goes)
        added += 2 * values[:, goes]
        added[goes] = np.inf
    return order


def reweighting(gram: Tensor, kept: Tensor) -> Tensor:
    """Return the factors w of the channels that stay, which make up best for those that go.

    Args:
        gram: X^T X, shape (channels, channels), float64. kept: indices of channels.

    Returns:
        Shape (len(kept),), float64; the w closest to X_S w = X 1.
    """
    inner = gram[kept][:, kept]
    missing = gram[kept].sum(dim=1) - inner.sum(dim=1)
    ridge = RIDGE * float(gram.diagonal().mean())
    if not ridge:  # no channel contributes anything
        return torch.ones_like(missing)
    eye = torch.eye(len(kept), dtype=gram.dtype, device=gram.device)
    correction: Tensor = torch.linalg.solve(inner + ridge * eye, missing)
    return 1.0 + correction


class ThinetOptions(MethodOptions):
    """Options of ThiNet."""

    images: int = Field(640, ge=1, description="Training images that output values come from.")
    batch_size: int = Field(128, ge=1, description="Images per forward pass while scoring.")
    samples: int = Field(
        10, ge=1, description="Output values per image, of each layer that reads channels."
    )


class Thinet(Method[ThinetOptions]):
    """The order in which channels can be left out of the next layer's outputs."""

    name = "thinet"
    summary = "how long the next layer's outputs can do without it, and reweights what stays"
    source = (
        "Luo, Wu, Lin: ThiNet: A Filter Level Pruning Method for Deep Neural Network "
        "Compression, ICCV 2017, https://arxiv.org/abs/1707.06342"
    )
    cost = "minutes"
    options = ThinetOptions
    needs_data = True
    normalisation = "none"  # places in an order, over the number of channels

    def score(self, context: Context) -> list[Tensor | None]:
        """The place of each channel in the order of discarding, over the group's size."""
        grams = self._grams(context)
        scores: list[Tensor | None] = []
        for number, group in enumerate(context.graph.groups):
            mine = [g for (owner, _), g in grams.items() if owner == number]
            if not mine:
                scores.append(None)
                continue
            total = torch.stack([g / g.trace().clamp_min(1e-300) for g in mine]).sum(dim=0)
            places = torch.empty(group.size)
            places[discard_order(total)] = torch.arange(1.0, group.size + 1) / group.size
            scores.append(places)
        return require_some(scores, self.name, "no convolution or linear layer reads them")

    def before_cut(self, context: Context, kept: Sequence[IndexTable]) -> None:
        """Multiply the weights that read what stays, each reading layer's by its own factors."""
        for (number, parameter), gram in self._grams(context).items():
            group, stays = context.graph.groups[number], torch.from_numpy(kept[number])
            if len(stays) == group.size:
                continue
            factors = reweighting(gram, stays.to(gram.device)).cpu()
            for slot in group.of_role(Role.CONSUMER):
                if slot.tensor != parameter:
                    continue
                weight = context.model.get_parameter(parameter)
                along = torch.ones(weight.shape[slot.dim], dtype=torch.float64)
                along[torch.from_numpy(slot.index)[stays]] = factors[:, None]
                shape = [-1 if dim == slot.dim else 1 for dim in range(weight.dim())]
                with torch.no_grad():
                    weight.mul_(along.to(weight.device, weight.dtype).view(shape))

    def _grams(self, context: Context) -> dict[tuple[int, str], Tensor]:
        """G by the number of a group and the name of the weight that reads it."""
        readers = reading_sites(context.graph)
        grams: dict[tuple[int, str], Tensor] = {}
        random = torch.Generator().manual_seed(0)
        count = 0

        def visit(site: int, layer: Contraction) -> None:
            sampled = contributions(layer, count, random)
            for number, parameter, index in readers[site]:
                x = sampled[:, torch.from_numpy(index).to(sampled.device)].sum(dim=2)
                key = (number, parameter)
                grams[key] = grams.get(key, 0.0) + x.mT @ x

        images, size = self.settings.images, self.settings.batch_size
        for batch in training_images(context, self.name, images, size, "Sampling outputs"):
            count = len(batch) * self.settings.samples
            read_contractions(context.model, batch, readers, visit)
        for (number, _), gram in grams.items():
            if not gram.isfinite().all():
                raise MethodError(
                    f"thinet met channels of '{context.graph.groups[number].name}' that give NaN "
                    "or inf. Check the checkpoint, and that the images are normalised as in "
                    "training."
                )
        return grams


METHOD = Thinet
