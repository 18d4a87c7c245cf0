"""Operators that move values and leave them as they are: views, concatenation, copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune2deploy.channels.labels import FIXED, NodeIds
from prune2deploy.channels.rules.base import Call, dims_in, rule, tensors_in
from prune2deploy.channels.tracer import Tracer


@rule("aten.cat", "aten.concat")
def _cat(t: Tracer, call: Call) -> None:
    # A one-dimensional empty tensor is allowed in cat and counts for nothing.
    parts = [x for x in call.args["tensors"] if not (x.dim() == 1 and x.numel() == 0)]
    dim = call.args.get("dim", 0) % call.out.dim()
    dims: list[NodeIds | None] = [None] * call.out.dim()
    for d in range(call.out.dim()):
        pieces = [t.labels(x).dims[d] for x in parts]
        if all(p is None for p in pieces):
            continue
        if d == dim:
            dims[d] = np.concatenate(
                [
                    p if p is not None else np.full(x.shape[d], FIXED)
                    for p, x in zip(pieces, parts, strict=True)
                ]
            )
        else:
            joined = pieces[0]
            for piece in pieces[1:]:
                joined = t.nodes.join(joined, piece, "concatenated beside a fixed dimension")
            dims[d] = joined
    t.set(call.out, dims)


@rule("aten.constant_pad_nd")
def _pad(t: Tracer, call: Call) -> None:
    x, pad = call.args["self"], call.args["pad"]
    dims = list(t.labels(x).dims)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        d = x.dim() - 1 - i
        ids = dims[d]
        if ids is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            t.nodes.freeze(ids, "cropped by a negative padding at a fixed place")
            dims[d] = None
            continue
        dims[d] = np.concatenate([np.full(before, FIXED), ids, np.full(after, FIXED)])
    t.set(call.out, dims)


@rule("aten.t", "aten.transpose", "aten.permute")
def _permute(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    order = list(range(x.dim()))
    if call.name == "aten.permute":
        order = [d % x.dim() for d in call.args["dims"]]
    elif x.dim() > 1:
        a, b = call.args.get("dim0", 0) % x.dim(), call.args.get("dim1", 1) % x.dim()
        order[a], order[b] = order[b], order[a]
    labels = t.labels(x)
    t.set(call.out, [labels.dims[d] for d in order], labels.parameter)


@rule("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.flatten")
def _view(t: Tracer, call: Call) -> None:
    x, out = call.args["self"], call.out
    labels = t.labels(x)
    dims: list[NodeIds | None] = [None] * out.dim()
    for sources, targets in matching_blocks(x.shape, out.shape):
        ids = _merge(t, [labels.dims[d] for d in sources], [x.shape[d] for d in sources])
        for d, part in zip(targets, _split(t, ids, [out.shape[d] for d in targets]), strict=True):
            dims[d] = part
    t.set(out, dims, labels.parameter)


def matching_blocks(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Smallest runs of old and new dimensions that hold the same elements.

    Dimensions of length 1 are left out: they carry nothing.
    """
    a = [d for d, n in enumerate(old) if n != 1]
    b = [d for d, n in enumerate(new) if n != 1]
    blocks = []
    i = j = 0
    while i < len(a) and j < len(b):
        i0, j0 = i, j
        size_a, size_b = old[a[i]], new[b[j]]
        i, j = i + 1, j + 1
        while size_a != size_b:
            if size_a < size_b:
                size_a *= old[a[i]]
                i += 1
            else:
                size_b *= new[b[j]]
                j += 1
        blocks.append((tuple(a[i0:i]), tuple(b[j0:j])))
    return blocks


def _merge(t: Tracer, parts: list[NodeIds | None], sizes: list[int]) -> NodeIds | None:
    """Labels of several dimensions flattened into one; only one of them may be labelled."""
    labelled = [i for i, p in enumerate(parts) if p is not None]
    if not labelled:
        return None
    if len(labelled) > 1:
        for i in labelled:
            t.nodes.freeze(parts[i], "flattened together with another channel dimension")
        return None
    axis = labelled[0]
    ids = parts[axis]
    assert ids is not None
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    return np.broadcast_to(ids.reshape(shape), sizes).reshape(-1)


def _split(t: Tracer, ids: NodeIds | None, sizes: list[int]) -> list[NodeIds | None]:
    """Labels of one dimension unflattened into several; one of them carries the channels.

    That is the one along which nothing new has to be tied, as after a flatten;
    otherwise the longest, which leaves the most channels to choose from.
    """
    result: list[NodeIds | None] = [None] * len(sizes)
    if ids is None:
        return result
    if len(sizes) == 1:
        return [ids]
    grid = ids.reshape(sizes)
    rows = [np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1) for axis in range(len(sizes))]
    free = [axis for axis, r in enumerate(rows) if (r == r[:, :1]).all()]
    best = max(free or range(len(sizes)), key=lambda axis: sizes[axis])
    t.nodes.join_all(rows[best])
    result[best] = rows[best][:, 0].copy()
    return result


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def _expand(t: Tracer, call: Call) -> None:
    x, out = call.args["self"], call.out
    dims = t.labels(x).dims
    t.set(out, [None] * (out.dim() - len(dims)) + list(dims))


@rule("aten.unsqueeze")
def _unsqueeze(t: Tracer, call: Call) -> None:
    dims = list(t.labels(call.args["self"]).dims)
    dims.insert(call.args["dim"] % call.out.dim(), None)
    t.set(call.out, dims)


@rule("aten.squeeze")
def _squeeze(t: Tracer, call: Call) -> None:
    labels = t.labels(call.args["self"])
    old = labels.shape  # squeeze_ has already changed the tensor's own
    wanted = call.args.get("dim")
    over = {d % len(old) for d in (range(len(old)) if wanted is None else dims_in(wanted))}
    gone = {d for d in over if old[d] == 1}
    t.set(call.out, [ids for d, ids in enumerate(labels.dims) if d not in gone])


@rule("aten.slice", "aten.split", "aten.split_with_sizes", "aten.select", "aten.unbind")
def _take_part(t: Tracer, call: Call) -> None:
    """Parts along `dim`. A part of a channel dimension is taken at a fixed place, so it stays."""
    x = call.args["self"]
    outs = tensors_in(call.out)
    dim = call.args.get("dim", 0) % x.dim()
    dims = list(t.labels(x).dims)
    if len(outs) != 1 or outs[0].shape != x.shape:
        t.nodes.freeze(dims[dim], f"{call.name} takes a part of it at a fixed place")
        dims[dim] = None
    if call.name in ("aten.select", "aten.unbind"):
        del dims[dim]
    for out in outs:
        t.set(out, dims)


@rule(
    "aten.clone",
    "aten.detach",
    "aten.alias",
    "aten.contiguous",
    "aten._to_copy",
    "aten.lift_fresh",
    "aten.native_dropout",
    "aten.copy",
)
def _same(t: Tracer, call: Call) -> None:
    """The values move, the labels stay."""
    x = next(iter(tensors_in(list(call.args.values()))))
    labels = t.labels(x)
    for out in tensors_in(call.out):
        t.set(out, labels.dims, labels.parameter)


@rule(
    "aten.empty_like",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.rand_like",
    "aten.randn_like",
)
def _same_shape(t: Tracer, call: Call) -> None:
    """A new tensor as wide as another: it shrinks with it, whatever it holds."""
    t.set(call.out, t.labels(call.args["self"]).dims)


@rule("aten.new_empty", "aten.new_zeros", "aten.new_ones", "aten.new_full")
def _new_shape(t: Tracer, call: Call) -> None:
    """A new tensor whose shape was computed: where it is as wide as the other, it shrinks with it.

    If the width was written down instead of computed, the trial of the cut finds out.
    """
    x, out = call.args["self"], call.out
    same = out.dim() == x.dim()
    known = t.labels(x).dims
    dims = [known[d] if same and n == x.shape[d] else None for d, n in enumerate(out.shape)]
    t.set(out, dims)


@rule("aten.copy_")
def _copy_into(t: Tracer, call: Call) -> None:
    # Written through: whoever reads the base of a view later must see these labels,
    # and we do not follow views back to their base, so what is copied in stays.
    source = call.args["src"]
    for ids in t.labels(source).dims:
        t.nodes.freeze(ids, "copied into a buffer of fixed size")
