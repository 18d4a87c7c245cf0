"""Results without values for the commonest operators.

PyTorch computes the shape of each result of a run on the meta device in Python, with all its
rules of broadcasting and promotion, in about a millisecond. Most operators of a vision model
are of a few kinds whose answer is known at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_UNARY = frozenset(
    f"aten.{name}"
    for name in ("relu", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh")
)
_BINARY = frozenset({"aten.add", "aten.sub", "aten.mul", "aten.div"})
_NORMS = frozenset(
    {
        "aten.native_batch_norm",
        "aten._native_batch_norm_legit",
        "aten._native_batch_norm_legit_no_training",
        "aten._batch_norm_no_update",
    }
)


def known_result(name: str, args: Mapping[str, Any]) -> Any:
    """The result of an operator on meta tensors; None where PyTorch has to compute it."""
    inplace = name.endswith("_") and not name.endswith("__")
    base = name[:-1] if inplace else name
    x = args.get("self", args.get("input"))
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        return None
    if base in _UNARY:
        return x if inplace else torch.empty_like(x)
    if base in _BINARY:
        other = args["other"]
        plain = type(other) in (int, float) or (isinstance(other, Tensor) and _spreads(other, x))
        if not plain or args.get("rounding_mode") is not None:
            return None
        return x if inplace else torch.empty_like(x)
    if name in _NORMS:
        return _batch_norm(x, args)
    if name in ("aten._softmax", "aten._safe_softmax"):
        return torch.empty_like(x) if args.get("half_to_float") is not True else None
    if name == "aten.native_layer_norm":
        return _layer_norm(x, args)
    if name == "aten.addmm":
        return _affine(x, args["mat1"], args["mat2"])
    return None


def _batch_norm(x: Tensor, args: Mapping[str, Any]) -> Any:
    vectors = [args.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
    if any(v is not None and v.shape != x.shape[1:2] for v in vectors):
        return None
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _layer_norm(x: Tensor, args: Mapping[str, Any]) -> Any:
    over = tuple(args["normalized_shape"])
    if not over or x.shape[-len(over) :] != over or not x.is_contiguous():
        return None
    if any(args.get(key) is not None and args[key].shape != over for key in ("weight", "bias")):
        return None
    lead = (*x.shape[: -len(over)], *[1] * len(over))
    return torch.empty_like(x), x.new_empty(lead), x.new_empty(lead)


def _affine(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]
    same = a.is_meta and b.is_meta and a.dtype == b.dtype == bias.dtype
    return a.new_empty((a.shape[0], b.shape[1])) if fits and same else None


def _spreads(other: Tensor, x: Tensor) -> bool:
    """Whether `other`, broadcast to x, leaves x's shape, layout and type."""
    if not other.is_meta or other.dtype != x.dtype or other.dim() > x.dim():
        return False
    if other.shape == x.shape:
        return other.stride() == x.stride()
    aligned = x.shape[x.dim() - other.dim() :]
    return all(n in (1, m) for n, m in zip(other.shape, aligned, strict=True))
