"""NISP: importance is propagated back from the final responses to every neuron.

Paper: Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis, "NISP: Pruning Networks Using Neuron
Importance Score Propagation", CVPR 2018, https://arxiv.org/abs/1711.05908.

The score of a neuron is the sum over the neurons that read it of |weight| times their score:
s_k = |W_(k+1)|^T s_(k+1). A channel's score is the sum over its positions.

Computed as the gradient of a linear shadow of the network (shadow.py says what becomes of
norms, activations and pools), in float64, as scores grow from layer to layer.

The scores start at the final responses, which are what the last layer (the classifier) reads.
With ranking classifier a response's score is the sum of |W| over all classes, which needs no
data. With ranking inf_fs they are ranked as in the paper, by infinite feature selection (Roffo,
Melzi, Cristani, "Infinite Feature Selection", ICCV 2015) on training images: with X the
responses, shape (images, F), std_i the deviation of one over the largest of all, and rho its rank
correlation (Spearman's),

    A_ij = 1/2 max(std_i, std_j) + 1/2 (1 - |rho_ij|)
    s = row sums of (I - r A)^-1 - I,  r = 0.9 / largest eigenvalue of A

so that a response counts that varies and is unlike others, over paths of any length through A.
A response that is constant counts as like all others. Of a map the mean over positions is taken.

Differs from the paper, of which neither the propagation nor the constants of the ranking (1/2
and 0.9) could be read in full: the default is classifier, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from scipy.stats import rankdata
from torch import Tensor

from prune2deploy.channels import Graph, Group, Role
from prune2deploy.channels.activations import read_activations
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context, Method, MethodOptions
from prune2deploy.methods.common.readings import filters, require_some, training_images
from prune2deploy.methods.common.shadow import propagate

MOST_RESPONSES = 8192
"""Infinite feature selection takes a matrix of responses × responses, here at most 512 MiB."""


def infinite_selection(responses: Tensor) -> Tensor:
    """Rank responses by how much they vary and how little they are like others.

    Args:
        responses: shape (samples, F), at least two samples.

    Returns:
        Shape (F,), float64, >= 0.
    """
    values = responses.double()
    deviations = values.std(dim=0)
    deviations = deviations / deviations.max().clamp_min(1e-300)
    # Ties, such as the zeros behind a ReLU, share their mean rank.
    ranks = torch.from_numpy(rankdata(values.cpu().numpy(), axis=0)).to(values)
    ranks = ranks - ranks.mean(dim=0)
    norms = ranks.norm(dim=0)
    rho = (ranks.mT @ ranks) / (norms[:, None] * norms).clamp_min(1e-300)
    constant = norms == 0
    rho = torch.where(constant[:, None] | constant, 1.0, rho)
    adjacency = torch.maximum(deviations[:, None], deviations) / 2 + (1 - rho.abs()) / 2
    largest = float(torch.linalg.eigvalsh(adjacency)[-1])
    if largest <= 0:  # all responses are constant
        return torch.zeros_like(deviations)
    ones = torch.ones_like(deviations)
    eye = torch.eye(len(ones), dtype=ones.dtype, device=ones.device)
    ranked: Tensor = torch.linalg.solve(eye - 0.9 / largest * adjacency, ones) - ones
    return ranked


class NispOptions(MethodOptions):
    """Options of NISP."""

    ranking: Literal["classifier", "inf_fs"] = Field(
        "classifier",
        description="How the final responses are ranked: by the weights of the last layer, or by "
        "infinite feature selection on training images.",
    )
    images: int = Field(
        640, ge=2, description="Training images on which inf_fs looks at the final responses."
    )
    batch_size: int = Field(128, ge=1, description="Images per forward pass for inf_fs.")


class Nisp(Method[NispOptions]):
    """Importance propagated back from the network's outputs."""

    name = "nisp"
    summary = "importance propagated back from the network's outputs through absolute weights"
    source = (
        "Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis: NISP: Pruning Networks Using Neuron "
        "Importance Score Propagation, CVPR 2018, https://arxiv.org/abs/1711.05908"
    )
    options = NispOptions

    def score(self, context: Context) -> list[Tensor | None]:
        """Add up the scores of the maps that a group makes, behind norms where there are any."""
        if not context.graph.groups:
            return []
        kinds = [filters(context, group) for group in context.graph.groups]  # refuses NaN
        start = self._start(context) if self.settings.ranking == "inf_fs" else None
        sums = propagate(context.model, context.graph.inputs, start)
        scores = [_of_group(group, sums) for group in context.graph.groups]
        require_some(scores, self.name, "no layer with weights produces them")
        # By the group's largest, so that the scores of deep networks fit in float32.
        return [
            None if s is None else (s / s.max().clamp_min(1e-300)).to(_type(some))
            for s, some in zip(scores, kinds, strict=True)
        ]

    def _start(self, context: Context) -> tuple[str, Tensor]:
        """The last layer's weight, and the scores of what that layer reads."""
        site, weight = _last_layer(context.graph)
        seen: list[Tensor] = []

        def visit(_: int, read: Tensor) -> None:
            if read.shape[1] > MOST_RESPONSES:
                raise MethodError(
                    f"nisp with ranking inf_fs compares all final responses, at most "
                    f"{MOST_RESPONSES}, and '{weight}' reads {read.shape[1]}. Write ranking: "
                    "classifier."
                )
            seen.append(read.flatten(2).mean(dim=2) if read.dim() > 2 else read.clone())

        images, size = self.settings.images, self.settings.batch_size
        for batch in training_images(context, self.name, images, size, "Reading final responses"):
            read_activations(context.model, batch, [site], visit)
        responses = torch.cat(seen)
        if not responses.isfinite().all():
            raise MethodError(
                "nisp met final responses that hold NaN or inf. Check the checkpoint, and that "
                "the images are normalised as in training."
            )
        return weight, infinite_selection(responses)


def _last_layer(graph: Graph) -> tuple[int, str]:
    """Number of the last convolution or matrix product with a weight, and that weight's name."""
    site = max(graph.sites, key=lambda site: site.number)
    if site.parameter is None:
        raise MethodError(
            "nisp with ranking inf_fs needs a last layer with a weight of its own, and this "
            "network's is computed. Write ranking: classifier."
        )
    return site.number, site.parameter


def _of_group(group: Group, sums: Mapping[str, Tensor]) -> Tensor | None:
    for role in (Role.SCALE, Role.PRODUCER):
        parts = [
            sums[slot.tensor][torch.from_numpy(slot.index)].sum(dim=1)
            for slot in group.of_role(role)
            if slot.tensor in sums and int(slot.index.max()) < len(sums[slot.tensor])
        ]
        if parts:
            return torch.stack(parts).sum(dim=0)
    return None


def _type(weights: list[Tensor]) -> torch.dtype:
    return weights[0].dtype if weights else torch.float32


METHOD = Nisp
