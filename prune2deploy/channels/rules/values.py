"""Operators that combine values within a tensor: normalisation, pooling, reductions."""

from __future__ import annotations

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
    over = range(x.dim()) if given is None or given == [] else dims_in(given)
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
