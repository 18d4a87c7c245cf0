"""Which samples make up which split, and which batch comes when.

Everything here is a function of plain numbers and a seed, so that a run that
was stopped finds the same splits, order and augmentation again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prune2deploy.data.base import Labels
from prune2deploy.errors import DataError


def seed_from(*parts: int | str) -> int:
    """Return a seed in 0..2**63-1 that depends on every part and on nothing else."""
    text = ":".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_from(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `seed_from(*parts)`."""
    return torch.Generator().manual_seed(seed_from(*parts))


def split_off(
    labels: Labels | None,
    count: int,
    share: float,
    seed: int,
    name: str,
    class_names: Sequence[str] | None = None,
) -> tuple[Labels, Labels]:
    """Split 0..count-1 at random into what stays and what goes.

    Args:
        labels: class numbers, shape (count,): every class gives the same share,
            at least one sample, and keeps at least one. None: a plain random split.
        count: number of samples.
        share: part that goes, in (0, 1).
        seed: same seed, same split.
        name: of the new split; makes the splits of one seed independent of each other.
        class_names: by class number, for messages.

    Returns:
        Indices that stay and indices that go, both ascending.

    Raises:
        DataError: the share is out of range, or a class has a single sample.
    """
    if not 0 < share < 1:
        raise DataError(
            f"The share for the {name} set is {share:g}; expected a number between 0 and 1, "
            f"such as 0.1. Change data.{name}."
        )
    generator = generator_from(seed, "split", name)
    classes = [np.arange(count)] if labels is None else _by_class(labels)
    gone = []
    for members in classes:
        if len(members) < 2:
            found = "The train set"
            if labels is not None:
                number = int(labels[members[0]])
                found = f"Class {class_names[number] if class_names else number}"
            raise DataError(
                f"{found} has {len(members)} image; expected at least 2, one of which goes to "
                f"the {name} set. Add images, or set data.{name} to a set of its own."
            )
        amount = min(max(round(share * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator).numpy()
        gone.append(members[order[:amount]])
    goes = np.sort(np.concatenate(gone))
    return np.setdiff1d(np.arange(count), goes), goes


def _by_class(labels: Labels) -> list[Labels]:
    return [np.flatnonzero(labels == number) for number in np.unique(labels)]


@dataclass(frozen=True)
class BatchPlan:
    """One batch: its number within the epoch and the positions of its samples."""

    number: int
    indices: Tensor


def plan_batches(
    count: int,
    batch_size: int,
    *,
    order_seed: tuple[int, int] | None,
    limit: int | None = None,
    drop_last: bool = False,
    min_batch: int = 1,
    skip: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> list[BatchPlan]:
    """Return the batches of one epoch, in order.

    Args:
        count: number of samples.
        batch_size: samples per batch, over all shards.
        order_seed: (seed, epoch) of a random order; None: as the samples lie.
        limit: only this many samples, the first in that order.
        drop_last: leave out a last batch that is not full.
        min_batch: a last batch with fewer samples joins the one before it.
        skip: leave out this many batches at the start.
        shard: (rank, number of ranks): every rank gets its part of every batch.

    Raises:
        ValueError: batch_size, limit or shard make no sense.
    """
    rank, ranks = shard
    if batch_size < 1 or (limit is not None and limit < 1) or not 0 <= rank < ranks:
        raise ValueError(f"batch_size {batch_size}, limit {limit}, shard {shard}")
    if order_seed is None:
        order = torch.arange(count)
    else:
        order = torch.randperm(count, generator=generator_from(*order_seed, "order"))
    chunks = list(torch.split(order[:limit], batch_size)) if count else []
    if chunks and len(chunks[-1]) < batch_size:
        if drop_last:
            chunks.pop()
        elif len(chunks) > 1 and len(chunks[-1]) < min_batch:
            last = chunks.pop()
            chunks[-1] = torch.cat([chunks[-1], last])
    return [BatchPlan(n, chunk[rank::ranks]) for n, chunk in enumerate(chunks)][skip:]
