"""How labels move through each ATen operator: one small rule per operator.

A rule gets the tracer and the bound call, joins what belongs together, and sets
the labels of the result. To add one, write a function with `@rule("aten.name")`.
Pointwise operators need none: PyTorch tags them, and one rule serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prune2deploy.channels.labels import FIXED, Labels, NodeIds, Role

if TYPE_CHECKING:
    from prune2deploy.channels.trace import Tracer


@dataclass
class Call:
    """One operator call: its arguments by their schema names, and what it returned."""

    name: str
    args: dict[str, Any]
    out: Any


Rule = Callable[["Tracer", Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under operator names such as 'aten.cat' (all overloads)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in an argument or result, one level of lists deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_in(v)]
    return []


def pointwise(t: Tracer, call: Call) -> None:
    """Whatever is broadcast together, index by index, stays together."""
    inputs = [x for value in call.args.values() for x in tensors_in(value)]
    for out in tensors_in(call.out):
        if out.dim() == 0:
            continue
        dims: list[NodeIds | None] = [None] * out.dim()
        for back in range(1, out.dim() + 1):
            length = out.shape[-back]
            if length <= 1:
                continue
            seen: list[NodeIds | None] = [
                t.labels(x).dims[-back]
                for x in inputs
                if x.dim() >= back and x.shape[-back] == length
            ]
            if any(s is not None for s in seen):
                joined = seen[0]
                for other in seen[1:]:
                    joined = t.nodes.join(
                        joined, other, f"{call.name} with values that cannot be removed"
                    )
                dims[-back] = joined
        t.set(out, dims)


# ---------------------------------------------------------------- contractions


@rule("aten.convolution", "aten._convolution", "aten.cudnn_convolution", "aten.mkldnn_convolution")
def _convolution(t: Tracer, call: Call) -> None:
    x, weight, bias = call.args["input"], call.args["weight"], call.args.get("bias")
    groups, transposed = call.args["groups"], call.args.get("transposed", False)
    lx, lw = t.labels(x), t.labels(weight)
    channel_dim = x.dim() - weight.dim() + 1  # 0 where the batch dimension is left out
    for kernel in lw.dims[2:]:
        t.nodes.freeze(kernel, None)
    outer, inner = lw.dims[0], lw.dims[1]
    given = lx.dims[channel_dim]
    if groups == 1:
        rows, columns = (inner, outer) if transposed else (outer, inner)
        t.nodes.join(given, columns, "reads the model's input or another fixed dimension")
        t.nodes.mark(columns, Role.CONSUMER)
    else:
        rows = _grouped(t, given, outer, inner, groups, weight, transposed, x.shape[channel_dim])
    t.nodes.mark(rows, Role.PRODUCER)
    if bias is not None:
        bias_ids = t.labels(bias).dims[0]
        rows = t.nodes.join(rows, bias_ids, "its bias is fixed")
        t.nodes.mark(bias_ids, Role.PRODUCER)
    for space in lx.dims[channel_dim + 1 :]:
        t.nodes.freeze(space, f"{call.name} slides along this dimension")
    dims = [*lx.dims[:channel_dim], rows, *[None] * (weight.dim() - 2)]
    positions = x if transposed else call.out
    t.add_site(x, channel_dim, weight, int(np.prod(positions.shape[channel_dim + 1 :])))
    t.set(call.out, dims)


def _grouped(
    t: Tracer,
    given: NodeIds | None,
    outer: NodeIds | None,
    inner: NodeIds | None,
    groups: int,
    weight: Tensor,
    transposed: bool,
    in_channels: int,
) -> NodeIds | None:
    """Grouped convolution: remove whole convolution groups, or one position in all of them.

    Whichever leaves more channels to choose from. Returns the labels of the
    output channels. A transposed weight has shape (in, out / groups, ...).
    """
    per_group_in = in_channels // groups
    reason = "one side of this grouped convolution is fixed"
    if groups >= per_group_in and given is not None and outer is not None:
        t.nodes.freeze(inner, None)
        t.nodes.join_all(given.reshape(groups, -1))
        t.nodes.join_all(outer.reshape(groups, -1))
        t.nodes.join(given.reshape(groups, -1)[:, 0], outer.reshape(groups, -1)[:, 0], reason)
        if transposed:
            return np.repeat(outer.reshape(groups, -1)[:, 0], weight.shape[1])
        return outer
    if transposed:
        # Rows of the weight are input channels here, its columns the outputs of every group.
        t.nodes.join(given, outer, reason)
        if outer is not None:
            t.nodes.join_all(outer.reshape(groups, -1).T)
        t.nodes.mark(outer, Role.CONSUMER)
        return None if inner is None else np.tile(inner, groups)
    if given is not None:
        t.nodes.join_all(given.reshape(groups, -1).T)
    t.nodes.join(None if given is None else given[:per_group_in], inner, reason)
    t.nodes.mark(inner, Role.CONSUMER)
    if outer is not None:
        t.nodes.join_all(outer.reshape(groups, -1).T)
    return outer


@rule("aten.addmm", "aten.mm", "aten.linear")
def _matrix_product(t: Tracer, call: Call) -> None:
    if call.name == "aten.linear":
        x, weight, bias = call.args["input"], call.args["weight"], call.args.get("bias")
        lw = t.labels(weight)
        rows, columns = lw.dims[0], lw.dims[1]
    else:
        x = call.args["mat1"] if call.name == "aten.addmm" else call.args["self"]
        weight = call.args["mat2"]
        bias = call.args["self"] if call.name == "aten.addmm" else None
        lw = t.labels(weight)
        columns, rows = lw.dims[0], lw.dims[1]
    lx = t.labels(x)
    t.nodes.join(lx.dims[-1], columns, "reads the model's input or another fixed dimension")
    if lw.parameter is not None:
        t.nodes.mark(columns, Role.CONSUMER)
        t.nodes.mark(rows, Role.PRODUCER)
    if bias is not None:
        bias_ids = t.labels(bias).dims[-1]
        rows = t.nodes.join(rows, bias_ids, "its bias is fixed")
        t.nodes.mark(bias_ids, Role.PRODUCER)
    t.add_site(x, x.dim() - 1, weight, 1)
    t.set(call.out, [*lx.dims[:-1], rows])


# ---------------------------------------------------------------- normalisation


@rule(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_with_update",
    "aten._batch_norm_no_update",
    "aten.cudnn_batch_norm",
    "aten.batch_norm",
)
def _batch_norm(t: Tracer, call: Call) -> None:
    x = call.args["input"]
    dims = list(t.labels(x).dims)
    for key, role in (
        ("weight", Role.SCALE),
        ("bias", Role.SHIFT),
        ("running_mean", Role.STATISTIC),
        ("running_var", Role.STATISTIC),
    ):
        vector = call.args.get(key)
        if isinstance(vector, Tensor):
            ids = t.labels(vector).dims[0]
            dims[1] = t.nodes.join(dims[1], ids, "normalises a fixed dimension")
            t.nodes.mark(ids, role)
    t.set(tensors_in(call.out)[0], dims)


@rule("aten._softmax", "aten._log_softmax", "aten.cumsum", "aten.sort", "aten.topk")
def _along_one_dim(t: Tracer, call: Call) -> None:
    """Entries along `dim` depend on one another, so none of them can go."""
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    dim = call.args.get("dim", -1)
    t.nodes.freeze(dims[dim], f"{call.name} over this dimension mixes its entries")
    dims[dim] = None
    for out in tensors_in(call.out):
        t.set(out, dims)


# ---------------------------------------------------------------- pooling, reductions


@rule(
    "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices",
    "aten.avg_pool2d",
    "aten.avg_pool3d",
    "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d",
    "aten.adaptive_max_pool2d",
    "aten.adaptive_max_pool3d",
    "aten.mkldnn_max_pool2d",
    "aten.upsample_nearest2d",
    "aten.upsample_nearest1d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_nearest_exact2d",
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.reflection_pad3d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    "aten.replication_pad3d",
)
def _spatial(t: Tracer, call: Call) -> None:
    """Works on each channel by itself: the last dimensions are space, the rest stays."""
    x = call.args["self"] if "self" in call.args else call.args["input"]
    spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
    dims = list(t.labels(x).dims)
    for i in range(len(dims) - spatial, len(dims)):
        t.nodes.freeze(dims[i], f"{call.name} mixes neighbours along this dimension")
        dims[i] = None
    for out in tensors_in(call.out):
        t.set(out, dims)


@rule(
    "aten.mean",
    "aten.sum",
    "aten.amax",
    "aten.amin",
    "aten.max",
    "aten.min",
    "aten.argmax",
    "aten.var",
    "aten.var_mean",
    "aten.std",
    "aten.linalg_vector_norm",
    "aten.prod",
)
def _reduction(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    labels = t.labels(x)
    given = call.args.get("dim")
    over = range(x.dim()) if given is None or given == [] else _as_list(given)
    reduced = {d % x.dim() for d in over}
    for d in reduced:
        t.nodes.freeze(labels.dims[d], f"{call.name} reduces this dimension")
    keep = bool(call.args.get("keepdim", False))
    dims = [
        None if d in reduced else ids
        for d, ids in enumerate(labels.dims)
        if keep or d not in reduced
    ]
    for out in tensors_in(call.out):
        t.set(out, dims if out.dim() == len(dims) else [None] * out.dim())


def _as_list(value: Any) -> Sequence[int]:
    return [value] if isinstance(value, int) else list(value)


# ---------------------------------------------------------------- shapes


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
    over = {d % len(old) for d in (range(len(old)) if wanted is None else _as_list(wanted))}
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


# Pointwise in effect, though PyTorch does not tag every form of them.
for _name in ("hardswish", "hardsigmoid", "hardtanh", "relu6", "celu", "prelu", "_prelu_kernel"):
    RULES[f"aten.{_name}"] = pointwise
for _name in ("bernoulli", "dropout", "feature_dropout", "fill", "zero"):
    RULES[f"aten.{_name}"] = pointwise


def find_rule(function: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator, or None where its effect on channels is unknown."""
    name = str(function._schema.name).replace("::", ".")
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in function.tags:
        return pointwise
    # In-place forms are not always tagged: aten.relu_ follows aten.relu.
    if name.endswith("_") and name[:-1] in RULES:
        return RULES[name[:-1]]
    if name.startswith("aten.") and name.endswith("_") and not name.endswith("__"):
        base = getattr(torch.ops.aten, name[len("aten.") : -1], None)
        overload = getattr(base, function._overloadname, None)
        if overload is not None and torch.Tag.pointwise in overload.tags:
            return pointwise
    return None


def unknown(t: Tracer, call: Call, labels: Sequence[Labels]) -> None:
    """No rule: nothing that goes in may be removed."""
    for one in labels:
        for ids in one.dims:
            t.nodes.freeze(ids, f"no rule for the operator {call.name}")
