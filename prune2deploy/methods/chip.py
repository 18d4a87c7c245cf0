"""CHIP: a channel matters as far as the other channels of its layer cannot replace it.

Paper: Sui, Yin, Xie, Phan, Zonouz, Yuan, "CHIP: CHannel Independence-based Pruning for
Compact Neural Networks", NeurIPS 2021, https://arxiv.org/abs/2110.13981.

For one image let A be a layer's feature map after normalisation and activation, one
channel per row: shape (C, H*W). The channel independence of c is

    CI_c = ||A||_* - ||A with row c zeroed||_*      (nuclear norms)

and a channel's score is the mean of CI_c over images. Features are read from the model
in eval mode, 640 training images by default.

Differs from the paper's code: channels that are tied by a residual addition share one
decision (the sum over the maps they appear in), where the code picks different indices
on the two sides; and the norms are not computed one singular value decomposition per
channel. With G = A A^T = U diag(lam) U^T,

    CI_c = 1/pi * integral over s > 0 of -log( s^2 * sum_j U_cj^2 / (lam_j + s^2) ) ds

because the sum in it is the diagonal of (G + s^2 I)^-1, which is the ratio of the
determinants of G without row and column c and of G itself. One eigendecomposition then
serves all channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prune2deploy.channels import Tap
from prune2deploy.channels.activations import read_activations
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import require_some, training_images

NODES = 128
LOWEST, HIGHEST = -20.0, 14.0
"""The integral runs over s = largest singular value * exp(u), u between these."""
ENTRIES_AT_ONCE = 2**24
"""Entries of feature maps in float64 at one time: 128 MiB, a batch of large maps would be GiBs."""


def channel_independence(maps: Tensor) -> Tensor:
    """Return the channel independence of every channel of every image.

    Args:
        maps: shape (images, C, positions), any float dtype. Not modified.

    Returns:
        Shape (images, C), float64, >= 0 up to rounding, in units of the maps. A channel
        of zeros scores exactly 0, copies of one another score low.
    """
    maps = maps.double()
    _, channels, positions = maps.shape
    if positions < channels:
        # The small side's eigenvectors v give the large side's: u = A v / sqrt(lam).
        lam, v = torch.linalg.eigh(maps.mT @ maps)
        real = lam > lam[:, -1:] * 1e-14
        lam = torch.where(real, lam, 0.0)
        projected = maps @ v / torch.where(real, lam, 1.0).sqrt()[:, None, :]
        share = projected.square() * real[:, None, :]
    else:
        lam, u = torch.linalg.eigh(maps @ maps.mT)
        lam = lam.clamp_min(0.0)
        share = u.square()
    return _integrate(lam, share, maps.square().sum(dim=2))


def _integrate(lam: Tensor, share: Tensor, energy: Tensor) -> Tensor:
    """The integral above, by Gauss-Legendre in u = log(s / largest singular value).

    lam (images, r): eigenvalues; share (images, C, r): squared entries of the
    eigenvectors, the rest of each row's 1 belonging to eigenvalue 0; energy
    (images, C): diagonal of G.
    """
    knots, weights = np.polynomial.legendre.leggauss(NODES)
    half = (HIGHEST - LOWEST) / 2
    u = torch.from_numpy(knots * half + (HIGHEST + LOWEST) / 2).to(lam)
    w = torch.from_numpy(weights * half).to(lam)
    largest = lam.amax(dim=1, keepdim=True).sqrt()  # (images, 1)
    s = largest * u.exp()  # (images, nodes)
    # -log(s^2 * (sum_j share/(lam+s^2) + null/s^2)) = -log(1 - sum_j share * lam/(lam+s^2));
    # the second form keeps its digits where the result is small.
    ratio = lam[:, :, None] / (lam[:, :, None] + s.square()[:, None, :])
    removed = torch.bmm(share, torch.nan_to_num(ratio))
    integrand = -torch.log1p(-removed.clamp(max=1.0 - 1e-16))
    result: Tensor = (integrand * (w * s)[:, None, :]).sum(dim=2) / math.pi
    # Beyond the last node the integrand falls like energy / s^2.
    tail = energy / (math.pi * largest * math.exp(HIGHEST))
    return torch.where(energy > 0, result + tail, 0.0)


class ChipOptions(MethodOptions):
    """Options of CHIP."""

    images: int = Field(640, ge=1, description="Training images whose feature maps are scored.")
    batch_size: int = Field(128, ge=1, description="Images per forward pass while scoring.")


class Chip(Method[ChipOptions]):
    """How much of a layer's feature maps no other channel can replace."""

    name = "chip"
    summary = "how much of a layer's feature maps no other channel can replace"
    source = (
        "Sui, Yin, Xie, Phan, Zonouz, Yuan: CHIP: CHannel Independence-based Pruning for "
        "Compact Neural Networks, NeurIPS 2021, https://arxiv.org/abs/2110.13981"
    )
    cost = "minutes"
    options = ChipOptions
    needs_data = True

    def score(self, context: Context) -> list[Tensor | None]:
        """Mean independence over images, added up over the maps a group appears in."""
        readers: dict[int, list[tuple[int, Tap]]] = {}
        for number, group in enumerate(context.graph.groups):
            for tap in group.taps:
                readers.setdefault(tap.site, []).append((number, tap))
        sums: dict[tuple[int, int], Tensor] = {}  # (group, site) -> (size,)
        flat: set[tuple[int, int]] = set()

        def visit(site: int, activation: Tensor) -> None:
            for number, tap, values in _independences(activation, readers[site]):
                before = sums.get((number, site), torch.zeros_like(values))
                sums[number, site] = before + values
                if activation.dim() == 2 and tap.index.shape[1] == 1:
                    flat.add((number, site))

        seen = 0
        count, size = self.settings.images, self.settings.batch_size
        for batch in training_images(context, self.name, count, size, "Reading feature maps"):
            read_activations(context.model, batch, readers, visit)
            seen += len(batch)
        scores = [_total(number, sums, flat, seen) for number in range(len(context.graph.groups))]
        return require_some(scores, self.name, "no layer reads their feature maps")


def _independences(
    activation: Tensor, readers: list[tuple[int, Tap]]
) -> Iterator[tuple[int, Tap, Tensor]]:
    """Per group that appears in a layer's input: the sum of CI over images, shape (size,)."""
    if activation.dim() > 2:
        maps = activation.movedim(readers[0][1].dim, 1).flatten(2)
        values = _sum_over_images(maps)
        for number, tap in readers:
            yield number, tap, values[torch.from_numpy(tap.index)].sum(dim=1)
        return
    for number, tap in readers:
        # A flattened map: each channel's positions lie side by side in one row.
        maps = activation[:, torch.from_numpy(tap.index)]
        yield number, tap, _sum_over_images(maps)


def _sum_over_images(maps: Tensor) -> Tensor:
    """Channel independence of maps (images, C, positions), summed to shape (C,)."""
    if not torch.isfinite(maps).all():
        raise MethodError(
            "chip met feature maps that hold NaN or inf. Check the checkpoint, and that the "
            "images are normalised as in training."
        )
    few = max(1, ENTRIES_AT_ONCE // maps[0].numel())
    return torch.stack([channel_independence(m).sum(dim=0) for m in maps.split(few)]).sum(dim=0)


def _total(
    number: int, sums: dict[tuple[int, int], Tensor], flat: set[tuple[int, int]], seen: int
) -> Tensor | None:
    """Add a group's maps. Pooled copies (one position) count only where there is nothing else."""
    mine = {key: value for key, value in sums.items() if key[0] == number}
    spatial = [value for key, value in mine.items() if key not in flat]
    parts = spatial or list(mine.values())
    return sum(parts[1:], start=parts[0]) / seen if parts else None


METHOD = Chip
