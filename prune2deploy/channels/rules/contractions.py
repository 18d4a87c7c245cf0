"""Convolutions and matrix products: they read channels and make new ones."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prune2deploy.channels.labels import NodeIds, Role
from prune2deploy.channels.rules.base import Call, rule, tensors_in
from prune2deploy.channels.tracer import Tracer


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
    way: int | None = 1
    if given is not None and outer is not None:
        table = given.reshape(groups, -1)
        way = t.choose_axis("grouped convolution", (table, table.T))
        if way is None:
            for ids in (inner, outer):
                t.nodes.freeze(ids, reason)
            return None
    if way == 0 and given is not None and outer is not None:
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


@rule("aten.bmm", "aten.baddbmm")
def _batched_product(t: Tracer, call: Call) -> None:
    """(B, N, K) × (B, K, M), both computed: attention. B holds the heads, K their width."""
    first, second = ("batch1", "batch2") if call.name == "aten.baddbmm" else ("self", "mat2")
    a, b = call.args[first], call.args[second]
    la, lb = t.labels(a).dims, t.labels(b).dims
    batch = t.nodes.join(la[0], lb[0], "multiplied with a tensor whose batches are fixed")
    t.nodes.join(la[2], lb[1], "multiplied with a fixed dimension")
    t.add_product(a, b)
    dims = [batch, la[1], lb[2]]
    if call.name == "aten.baddbmm":
        for back, ids in enumerate(reversed(t.labels(call.args["self"]).dims), 1):
            if call.args["self"].shape[-back] > 1:
                dims[-back] = t.nodes.join(dims[-back], ids, "added to a fixed dimension")
    t.set(call.out, dims)


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
)
def _attention(t: Tracer, call: Call) -> None:
    """Fused attention: query, key and value of shape (B, heads, tokens, width)."""
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    lq, lk, lv = (list(t.labels(x).dims) for x in (query, key, value))
    dims = lq[:-1]
    for d in range(len(dims) - 1):
        for other in (lk, lv):
            dims[d] = t.nodes.join(dims[d], other[d], "attends to fixed heads")
    width = t.nodes.join(lq[-1], lk[-1], "multiplied with a fixed dimension")
    if call.args.get("scale") is None:
        t.nodes.freeze(width, "the scale of this attention is computed from the width of its heads")
    for tokens in (lq[-2], lk[-2], lv[-2]):
        t.nodes.freeze(tokens, "attention mixes the entries of this dimension")
    t.set(tensors_in(call.out)[0], [*dims[:-1], None, lv[-1]])


@rule("aten.embedding")
def _embedding(t: Tracer, call: Call) -> None:
    table = t.labels(call.args["weight"])
    t.nodes.freeze(table.dims[0], "its rows are looked up by number")
    t.nodes.mark(table.dims[1], Role.PRODUCER)
    t.set(call.out, [*[None] * call.args["indices"].dim(), table.dims[1]])


@rule("aten._weight_norm_interface")
def _weight_norm(t: Tracer, call: Call) -> None:
    """weight = g * v / |v|, the norm over all dimensions but one: its entries follow v's."""
    v, g, dim = call.args["v"], call.args["g"], call.args.get("dim", 0)
    dims = list(t.labels(v).dims)
    dims[dim] = t.nodes.join(dims[dim], t.labels(g).dims[dim], "scaled by a fixed vector")
    weight, norms = tensors_in(call.out)
    t.set(weight, dims)
    t.set(norms, [ids if d == dim else None for d, ids in enumerate(dims)])
