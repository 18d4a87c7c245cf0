"""Convolutions and matrix products: they read channels and make new ones."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prune2deploy.channels.labels import NodeIds, Role
from prune2deploy.channels.rules.base import Call, rule
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
