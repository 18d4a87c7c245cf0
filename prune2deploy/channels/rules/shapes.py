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
        lengths = [out.shape[d] for d in targets]
        for d, part in zip(targets, _divide(t, ids, lengths), strict=True):
            dims[d] = part
    t.set(out, dims, labels.parameter)
    t.see("view", [x, out])


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
    """Labels of several dimensions flattened into one: those of the longest that can be cut.

    The others stay: kernel dimensions, where a weight is flattened to be standardised.
    """
    labelled = {i: ids for i, ids in enumerate(parts) if ids is not None}
    if not labelled:
        return None
    # The windows of an attention mask stay anyway, and must not win over the heads beside them.
    free = [i for i, ids in labelled.items() if not t.nodes.stay(ids)] or list(labelled)
    axis = free[0] if len(free) == 1 else free[t.longest([sizes[i] for i in free])]
    for i, ids in labelled.items():
        if i != axis:
            t.nodes.freeze(ids, "flattened together with another channel dimension")
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    return np.broadcast_to(labelled[axis].reshape(shape), sizes).reshape(-1)


def _divide(t: Tracer, ids: NodeIds | None, sizes: list[int]) -> list[NodeIds | None]:
    """Labels of one dimension unflattened into several; one of them carries the channels.

    That is the one along which nothing new has to be tied, as after a flatten;
    otherwise the longest, which leaves the most channels to choose from, and if the
    model's code does not allow that, the next.
    """
    result: list[NodeIds | None] = [None] * len(sizes)
    if ids is None:
        return result
    if len(sizes) == 1:
        return [ids]
    grid = ids.reshape(sizes)
    rows = [np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1) for axis in range(len(sizes))]
    free = [axis for axis, r in enumerate(rows) if (r == r[:, :1]).all()]
    if free:
        best = max(free, key=lambda axis: sizes[axis])
    else:
        chosen = t.choose_axis("view", rows)
        if chosen is None:
            return result
        best = chosen
    t.nodes.join_all(rows[best])
    result[best] = rows[best][:, 0].copy()
    return result


@rule("aten.stack")
def _stack(t: Tracer, call: Call) -> None:
    parts = call.args["tensors"]
    dims: list[NodeIds | None] = []
    for pieces in zip(*[t.labels(x).dims for x in parts], strict=True):
        joined = pieces[0]
        for piece in pieces[1:]:
            joined = t.nodes.join(joined, piece, "stacked beside a fixed dimension")
        dims.append(joined)
    dims.insert(call.args.get("dim", 0) % call.out.dim(), None)
    t.set(call.out, dims)


@rule("aten.repeat")
def _repeat(t: Tracer, call: Call) -> None:
    repeats = call.args["repeats"]
    dims = t.labels(call.args["self"]).dims
    padded = [*[None] * (len(repeats) - len(dims)), *dims]
    t.set(
        call.out,
        [None if d is None else np.tile(d, n) for d, n in zip(padded, repeats, strict=True)],
    )


@rule("aten.flip")
def _flip(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    for d in call.args["dims"]:
        ids = dims[d]
        dims[d] = None if ids is None else ids[::-1].copy()
    t.set(call.out, dims)


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


@rule("aten.as_strided")
def _as_strided(t: Tracer, call: Call) -> None:
    """Pooling to 1×1 restates the strides so; any other use may pick entries at will."""
    labels = t.labels(call.args["self"])
    if tuple(call.out.shape) == labels.shape:
        t.set(call.out, labels.dims, labels.parameter)
        return
    for ids in labels.dims:
        t.nodes.freeze(ids, "as_strided addresses its entries by their place in memory")


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


@rule("aten.index_put_")
def _write_rows(t: Tracer, call: Call) -> None:
    """Rows written by their numbers into a tensor made for them; what stands beside goes along.

    If the tensor's width was written down instead of computed, the trial finds out.
    """
    target, values = call.args["self"], call.args["values"]
    indices = call.args["indices"]
    dims, given = list(t.labels(target).dims), t.labels(values).dims
    for d, index in enumerate(indices):
        if index is not None:
            t.nodes.freeze(dims[d], "written to by number")
            dims[d] = None
    free = [d for d in range(len(dims)) if d >= len(indices) or indices[d] is None]
    fresh = not t.labels(target).labelled
    for back, d in enumerate(reversed(free), 1):
        ids = given[-back] if back <= len(given) else None
        if fresh and ids is not None and len(ids) == target.shape[d]:
            dims[d] = ids
        else:
            dims[d] = t.nodes.join(dims[d], ids, "written into a tensor of fixed size")
    t.set(target, dims)


@rule("aten.copy_")
def _copy_into(t: Tracer, call: Call) -> None:
    # Whoever reads the base of a view later sees the labels that the base has. So what is copied
    # in is tied to those, and where the base has none, it stays.
    target, source = t.labels(call.args["self"]), t.labels(call.args["src"])
    for back in range(1, len(source.dims) + 1):
        ids = source.dims[-back]
        if ids is not None:
            t.nodes.join(target.dims[-back], ids, "copied into a tensor of fixed size")
