"""Operators that combine values within a tensor: normalisation, pooling, reductions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prune2deploy.channels.labels import Role
from prune2deploy.channels.rules.base import Call, dims_in, rule, tensors_in
from prune2deploy.channels.tracer import Tracer


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


@rule(
    "aten._softmax",
    "aten._safe_softmax",
    "aten._log_softmax",
    "aten.cumsum",
    "aten.sort",
    "aten.topk",
)
def _along_one_dim(t: Tracer, call: Call) -> None:
    """Entries along `dim` depend on one another, so none of them can go."""
    x = call.args["self"]
    dims = list(t.labels(x).dims)
    dim = call.args.get("dim", -1)
    t.nodes.freeze(dims[dim], f"{call.name} over this dimension mixes its entries")
    dims[dim] = None
    for out in tensors_in(call.out):
        t.set(out, dims)


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
    "aten.upsample_linear1d",
    "aten.upsample_trilinear3d",
    "aten.upsample_nearest3d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
    "aten._upsample_nearest_exact1d",
    "aten._upsample_nearest_exact3d",
    "aten.avg_pool1d",
    "aten.max_pool2d",
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


NORMALISING = frozenset(
    f"aten.{name}"
    for name in ("mean", "sum", "amax", "amin", "var", "var_mean", "std", "linalg_vector_norm")
)
"""Reductions that mean the same over fewer channels; see reference.py."""


@rule(*NORMALISING, "aten.max", "aten.min", "aten.argmax", "aten.argmin", "aten.prod", "aten.all")
def _reduction(t: Tracer, call: Call) -> None:
    x = call.args["self"]
    labels = t.labels(x)
    reduced = reduced_dims(call.args, x.dim())
    for d in reduced:
        if call.name not in NORMALISING:
            t.nodes.freeze(labels.dims[d], f"{call.name} reduces this dimension")
    keep = bool(call.args.get("keepdim", False))
    dims = [
        None if d in reduced else ids
        for d, ids in enumerate(labels.dims)
        if keep or d not in reduced
    ]
    for out in tensors_in(call.out):
        t.set(out, dims if out.dim() == len(dims) else [None] * out.dim())


def reduced_dims(args: Mapping[str, Any], dimensions: int) -> set[int]:
    """Which dimensions a reduction goes over: those it names, or all."""
    given = args.get("dim")
    over = range(dimensions) if given is None or given == [] else dims_in(given)
    return {d % dimensions for d in over}


@rule("aten.native_layer_norm", "aten._fused_rms_norm")
def _layer_norm(t: Tracer, call: Call) -> None:
    """Normalises over the last dimensions together; what is cut there is left out of the mean."""
    x = call.args["input"]
    dims = list(t.labels(x).dims)
    over = len(call.args["normalized_shape"])
    for key, role in (("weight", Role.SCALE), ("bias", Role.SHIFT)):
        vector = call.args.get(key)
        if isinstance(vector, Tensor):
            for back in range(1, over + 1):
                ids = t.labels(vector).dims[-back]
                dims[-back] = t.nodes.join(dims[-back], ids, "normalises a fixed dimension")
                t.nodes.mark(ids, role)
    outs = tensors_in(call.out)
    t.set(outs[0], dims)


@rule("aten.native_group_norm")
def _group_norm(t: Tracer, call: Call) -> None:
    """Several norm groups: whole groups go, or the same positions in all of them."""
    x, count = call.args["input"], call.args["group"]
    dims = list(t.labels(x).dims)
    for key, role in (("weight", Role.SCALE), ("bias", Role.SHIFT)):
        vector = call.args.get(key)
        if isinstance(vector, Tensor):
            ids = t.labels(vector).dims[0]
            dims[1] = t.nodes.join(dims[1], ids, "normalises a fixed dimension")
            t.nodes.mark(ids, role)
    ids = dims[1]
    if ids is not None and 1 < count < len(ids):
        rows = ids.reshape(count, -1)
        tables = (rows, rows.T)
        way = t.choose_axis(call.name, tables)
        if way is None:
            dims[1] = None
        else:
            t.nodes.join_all(tables[way])
    for d in range(2, len(dims)):
        t.nodes.freeze(dims[d], "group norm averages over this dimension")
        dims[d] = None
    t.set(tensors_in(call.out)[0], dims)


@rule("aten.tril", "aten.triu")
def _triangle(t: Tracer, call: Call) -> None:
    dims = list(t.labels(call.args["self"]).dims)
    for d in (-1, -2):
        t.nodes.freeze(dims[d], f"{call.name} masks it at fixed places")
        dims[d] = None
    t.set(call.out, dims)


@rule("aten.grid_sampler_2d", "torchvision.roi_align", "torchvision.roi_pool")
def _sampled(t: Tracer, call: Call) -> None:
    """Each channel is sampled by itself at computed places of space, (N, C, H, W)."""
    x, *rest = tensors_in(list(call.args.values()))
    channels = t.labels(x).dims[1]
    for other in [t.labels(x).dims[d] for d in (0, 2, 3)] + [
        ids for one in rest for ids in t.labels(one).dims
    ]:
        t.nodes.freeze(other, f"{call.name} picks from it by position")
    for out in tensors_in(call.out):
        if out.dim() == 4:
            t.set(out, [None, channels, None, None])
