"""What scores are read from: filters, norms and scales of a group, and training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.channels import Graph, Group, Role, Slot
from prune2deploy.errors import MethodError
from prune2deploy.methods.base import Context


def rows(tensor: Tensor, slot: Slot) -> Tensor:
    """Each channel's entries of one parameter, flattened: shape (channels, entries)."""
    index = slot.index.reshape(-1)
    picked = tensor.movedim(slot.dim, 0)
    if not np.array_equal(index, np.arange(len(picked))):
        picked = picked.index_select(0, torch.from_numpy(index).to(tensor.device))
    return picked.reshape(slot.index.shape[0], -1)


def by_channel(values: Tensor, slot: Slot, tensor: Tensor, fill: float) -> Tensor:
    """Lay a number per channel along the slot's dimension, to multiply the parameter with.

    Args:
        values: shape (channels,). fill: for entries of no channel of the slot.

    Returns:
        What broadcasts with `tensor`, and is of its type.
    """
    laid = tensor.new_full((tensor.shape[slot.dim],), fill)
    index = torch.from_numpy(slot.index).to(tensor.device)
    laid[index] = values.to(tensor)[:, None].expand(index.shape)
    return laid.view([-1 if dim == slot.dim else 1 for dim in range(tensor.dim())])


def filters(context: Context, group: Group) -> list[Tensor]:
    """Weights that produce the group's channels, per layer shape (channels, entries).

    Biases are no filters and are left out.
    """
    found = []
    for slot in group.of_role(Role.PRODUCER):
        tensor = context.tensor(slot.tensor)
        if tensor.dim() > 1:
            found.append(rows(tensor, slot))
    for tensor in found:
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise MethodError(
                f"The weights that produce '{group.name}' hold NaN or inf. Check the checkpoint."
            )
    return found


def joint_norms(parts: Sequence[Tensor]) -> Tensor:
    """L2 norm of each channel's entries in all parts together.

    Args:
        parts: each of shape (channels, entries).

    Returns:
        Shape (channels,), >= 0.
    """
    norms: Tensor = torch.linalg.vector_norm(torch.cat(list(parts), dim=1), dim=1)
    return norms


def relative_norms(context: Context, group: Group) -> Tensor | None:
    """L2 norm of each channel's filters over the mean of the group's, so that layers compare.

    What methods that learn a number per channel go by where nothing was learned.

    Returns:
        Shape (size,), 1 on average, zeros if all filters are; None: no weights make the group.
    """
    parts = filters(context, group)
    if not parts:
        return None
    norms = joint_norms(parts)
    mean = norms.mean()
    return norms / mean if mean > 0 else norms


def learned_scores(
    context: Context, learned: Mapping[str, Tensor], method: str, missing: str
) -> list[Tensor | None]:
    """What a training left per group, by the groups' names; norms of filters if there was none.

    Raises:
        MethodError: a group has another size than in the training, or no group was learned, for
            which `missing` is the reason.
    """
    groups = context.graph.groups
    if not learned:
        norms = [relative_norms(context, group) for group in groups]
        return require_some(norms, method, "no layer with weights produces them")
    scores = [learned.get(group.name) for group in groups]
    for group, found in zip(groups, scores, strict=True):
        if found is not None and len(found) != group.size:
            raise MethodError(
                f"{method} was trained on a network with other channels: '{group.name}' has "
                f"{group.size} and {len(found)} were learned. Train with its hooks again "
                "after each cut (prune.schedule.finetune_epochs above 0)."
            )
    return require_some(scores, method, missing)


def filter_norms(context: Context, method: str) -> list[Tensor | None]:
    """Score every group by the L2 norm of the filters that produce a channel, as one vector.

    Raises:
        MethodError: no group is produced by a layer with weights.
    """
    parts = [filters(context, group) for group in context.graph.groups]
    scores = [joint_norms(some) if some else None for some in parts]
    return require_some(scores, method, "no layer with weights produces them")


def scales(context: Context, group: Group) -> list[Tensor]:
    """Batch-norm scales (gamma) of the group, per layer shape (channels, copies)."""
    return [rows(context.tensor(s.tensor), s) for s in group.of_role(Role.SCALE)]


def scale_parameters(graph: Graph) -> tuple[nn.Parameter, ...]:
    """Batch-norm scales of channels that can go, each once, in the order of the model."""
    names = {s.tensor: None for g in graph.groups for s in g.of_role(Role.SCALE)}
    return tuple(graph.model.get_parameter(name) for name in names)


def weight_slots(graph: Graph, group: Group, *roles: Role) -> list[Slot]:
    """A group's slots of these roles in weights; biases and norms are vectors and left out."""
    slots = [slot for role in roles for slot in group.of_role(role)]
    return [slot for slot in slots if len(graph.shapes[slot.tensor]) > 1]


def mean_scales(context: Context, method: str) -> list[Tensor | None]:
    """Score every group by |gamma|, the mean of its batch norms where it has several.

    Raises:
        MethodError: no group has a batch norm with a scale.
    """
    scores: list[Tensor | None] = []
    for group in context.graph.groups:
        parts = [gamma.abs().mean(dim=1) for gamma in scales(context, group)]
        scores.append(torch.stack(parts).mean(dim=0) if parts else None)
    return require_some(scores, method, "none has a batch norm with a scale")


def training_images(
    context: Context, method: str, count: int, batch_size: int, label: str
) -> Iterator[Tensor]:
    """Batches of training images for a score that looks at what the network makes of them.

    Args:
        label: says what is done with them, for the progress bar.

    Raises:
        MethodError: there are none.
    """
    if context.images is None:
        raise MethodError(
            f"{method} looks at training images and was given no images. Pass some: "
            "in a recipe 'data', in Python plan(..., images=batches)."
        )
    seen = 0
    with progress.task(label, total=count) as shown:
        for batch in context.images(count, batch_size):
            yield batch
            seen += len(batch)
            shown.advance(len(batch))
    if not seen:
        raise MethodError(f"{method} was given no images: the training set is empty.")


def require_some(scores: list[Tensor | None], method: str, missing: str) -> list[Tensor | None]:
    """Return the scores; refuse if not a single group could be judged.

    Raises:
        MethodError: every score is None (and there are groups).
    """
    if scores and all(s is None for s in scores):
        raise MethodError(
            f"{method} can judge none of the {len(scores)} groups: {missing}. "
            "Choose another method, for example l1."
        )
    return scores
