"""Operators that take a dimension apart, or pick from it, at places that the model's code names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from prune2deploy.channels.labels import NodeIds
from prune2deploy.channels.rules.base import Call, rule, tensors_in
from prune2deploy.channels.tracer import Tracer


@rule("aten.split", "aten.unsafe_split", "aten.unsafe_chunk", "aten.split_copy")
def _equal_parts(t: Tracer, call: Call) -> None:
    _take(t, call, tensors_in(call.out), ("tied",))


@rule("aten.split_with_sizes", "aten.unsafe_split_with_sizes", "aten.split_with_sizes_copy")
def _given_parts(t: Tracer, call: Call) -> None:
    _take(t, call, tensors_in(call.out), ("free", "tied"))


@rule("aten.slice")
def _slice(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    dim = call.args.get("dim", 0) % x.dim()
    start, _, step = slice(
        call.args.get("start"), call.args.get("end"), call.args.get("step", 1)
    ).indices(x.shape[dim])
    if step == 1:
        _take(t, call, [call.out], ("free", "tied"), start)
        return
    dims = list(t.labels(x).dims)
    ids = dims[dim]
    if ids is not None:
        dims[dim] = _every_nth(t, ids, start, step)
    t.set(call.out, dims)


def _take(
    t: Tracer, call: Call, outs: Sequence[torch.Tensor], ways: Sequence[str], start: int = 0
) -> None:
    """Consecutive parts along `dim`, from `start` on.

    free: each part shrinks as it likes; the code must then follow, by an attribute that
        states its length. tied: all parts shrink alike, for code that divides evenly.
    """
    x = call.args["self"]
    dim = call.args.get("dim", 0) % x.dim()
    dims = list(t.labels(x).dims)
    ids = dims[dim]
    lengths = [out.shape[dim] for out in outs]
    if ids is None or lengths == [x.shape[dim]]:
        for out in outs:
            t.set(out, dims)
        return
    way = t.choose(call.name, len(ways), ids)
    if way is not None and ways[way] == "tied":
        segment = math.gcd(len(ids), start, *lengths)
        t.nodes.join_all(ids.reshape(-1, segment).T)
    for out, length in zip(outs, lengths, strict=True):
        part = ids[start : start + length]
        if way is not None and ways[way] == "free":
            t.nodes.parts.append(part)
        t.set(out, [*dims[:dim], None if way is None else part, *dims[dim + 1 :]])
        start += length
    t.see(call.name, [x, *outs])


def _every_nth(t: Tracer, ids: NodeIds, start: int, step: int) -> NodeIds | None:
    """Runs of `step` entries stay together, so that every n-th is still the same."""
    if len(ids) % step:
        t.nodes.freeze(ids, "every n-th entry of it is taken, and n does not divide its length")
        return None
    t.nodes.join_all(ids.reshape(-1, step))
    return ids[start::step]


@rule("aten.select", "aten.unbind")
def _one_index(t: Tracer, call: Call) -> None:
    """A single index of a dimension, which goes. What stands at a fixed place stays."""
    x = call.args["self"]
    dim = call.args.get("dim", 0) % x.dim()
    dims = list(t.labels(x).dims)
    t.nodes.freeze(dims[dim], f"{call.name} takes an entry of it at a fixed place")
    del dims[dim]
    for out in tensors_in(call.out):
        t.set(out, dims)


@rule("aten.glu")
def _glu(t: Tracer, call: Call) -> None:
    """The first half times the sigmoid of the second."""
    x = call.args["self"]
    dim = call.args.get("dim", -1) % x.dim()
    dims = list(t.labels(x).dims)
    ids = dims[dim]
    if ids is not None:
        half = len(ids) // 2
        t.nodes.join_all(np.stack([ids[:half], ids[half:]], axis=1))
        dims[dim] = ids[:half]
    t.set(call.out, dims)


@rule("aten.pixel_shuffle")
def _pixel_shuffle(t: Tracer, call: Call) -> None:
    """(…, C r², H, W) to (…, C, H r, W r): r² neighbours become one channel."""
    dims = list(t.labels(call.args["self"]).dims)
    ids = dims[-3]
    _freeze_space(t, call, dims, 2)
    if ids is not None:
        rows = ids.reshape(-1, call.args["upscale_factor"] ** 2)
        t.nodes.join_all(rows)
        dims[-3] = rows[:, 0]
    t.set(call.out, dims)


@rule("aten.pixel_unshuffle")
def _pixel_unshuffle(t: Tracer, call: Call) -> None:
    dims = list(t.labels(call.args["self"]).dims)
    ids = dims[-3]
    _freeze_space(t, call, dims, 2)
    if ids is not None:
        dims[-3] = np.repeat(ids, call.args["downscale_factor"] ** 2)
    t.set(call.out, dims)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def _channel_shuffle(t: Tracer, call: Call) -> None:
    """Channels of all groups at one position stay or go together, so the order is the same."""
    dims = list(t.labels(call.args["self"]).dims)
    ids = dims[1]
    if ids is not None:
        rows = ids.reshape(call.args["groups"], -1).T
        t.nodes.join_all(rows)
        dims[1] = rows.reshape(-1)
    t.set(call.out, dims)


@rule("aten.im2col")
def _im2col(t: Tracer, call: Call) -> None:
    """(B, C, H, W) to (B, C kh kw, L): a channel becomes a run of kh kw rows."""
    dims = list(t.labels(call.args["self"]).dims)
    _freeze_space(t, call, dims, 2)
    ids = dims[-3]
    rows = None if ids is None else np.repeat(ids, math.prod(call.args["kernel_size"]))
    t.set(call.out, [*dims[:-3], rows, None])


@rule("aten.col2im")
def _col2im(t: Tracer, call: Call) -> None:
    dims = list(t.labels(call.args["self"]).dims)
    _freeze_space(t, call, dims, 1)
    ids = dims[-2]
    if ids is not None:
        rows = ids.reshape(-1, math.prod(call.args["kernel_size"]))
        t.nodes.join_all(rows)
        ids = rows[:, 0]
    t.set(call.out, [*dims[:-2], ids, None, None])


def _freeze_space(t: Tracer, call: Call, dims: list[NodeIds | None], count: int) -> None:
    for d in range(len(dims) - count, len(dims)):
        t.nodes.freeze(dims[d], f"{call.name} rearranges this dimension")
        dims[d] = None


@rule("aten.roll")
def _roll(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    for d in call.args.get("dims") or range(x.dim()):
        t.nodes.freeze(dims[d], "rolled by a fixed number of places")
        dims[d] = None
    t.set(call.out, dims)


@rule("aten.index", "aten.index_select")
def _index(t: Tracer, call: Call) -> None:
    """Rows picked by their numbers stay; the dimensions beside them keep their channels."""
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    if call.name == "aten.index_select":
        picked = {call.args["dim"] % x.dim()}
    else:
        picked = {d for d, i in enumerate(call.args["indices"]) if i is not None}
    for d in picked:
        t.nodes.freeze(dims[d], f"{call.name} picks from it by number")
    for index in tensors_in([call.args.get("index"), call.args.get("indices")]):
        for ids in t.labels(index).dims:
            t.nodes.freeze(ids, f"its entries are numbers that {call.name} picks by")
    if call.name == "aten.index_select":
        t.set(call.out, [None if d in picked else ids for d, ids in enumerate(dims)])
        return
    kept = [ids for d, ids in enumerate(dims) if d not in picked]
    added = call.out.dim() - len(kept)
    first = min(picked, default=0)
    # Indices that are not side by side put their dimensions in front.
    at = first if picked == set(range(first, first + len(picked))) else 0
    t.set(call.out, [*kept[:at], *[None] * added, *kept[at:]])


@rule("aten.unfold")
def _unfold(t: Tracer, call: Call) -> None:
    """Sliding windows along one dimension, which become a new last dimension."""
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    d = call.args["dimension"] % x.dim()
    t.nodes.freeze(dims[d], "windows slide along this dimension")
    dims[d] = None
    t.set(call.out, [*dims, None])
