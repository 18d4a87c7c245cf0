"""The numbers that a cut model must give, computed without cutting it.

The model runs at full size with every removed entry set to zero. Where it averages or
normalises over a cut dimension, zeros would count, so there the same operator is applied to
the kept entries alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prune2deploy.channels.cut import mask
from prune2deploy.channels.forward import Inputs, operator_name
from prune2deploy.channels.groups import IndexTable
from prune2deploy.channels.labels import NodeIds
from prune2deploy.channels.observe import Subject, TraceMode, observe, register_all, watch
from prune2deploy.channels.plan import Plan
from prune2deploy.channels.rules.values import NORMALISING, reduced_dims
from prune2deploy.channels.tracer import Tracer

_LAYER_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})


def run_reference(model: nn.Module, plan: Plan, inputs: Inputs) -> Any:
    """What the model cut by the plan must return, in eval mode without gradients.

    Raises:
        ModelError: the plan was made for another model. What forward raises goes through.
    """
    subject = Subject(mask(model, plan), inputs, on_meta=False)
    tracer = _PlanTracer(plan)
    register_all(tracer, subject.model)
    return watch(_ReferenceMode(tracer), subject)


def reference_trace(subject: Subject, plan: Plan, whole: Tracer, train_too: bool) -> Tracer:
    """Trace of the masked model with the numbers of the cut one, to compare operators with."""
    masked = Subject(mask(subject.model, plan), subject.inputs, on_meta=False)
    tracer = _PlanTracer(plan, whole)
    observe(_ReferenceMode(tracer), masked, train_too)
    return tracer


class _PlanTracer(Tracer):
    """Takes the way through the model that a plan took: that of `whole`, where it is known."""

    def __init__(self, plan: Plan, whole: Tracer | None = None) -> None:
        if whole is None:
            super().__init__()
        else:
            super().__init__(whole.decisions, whole.refusals, whole.picks)
        self._plan = plan
        self._flags: list[npt.NDArray[np.bool_]] = []

    def register(self, name: str, tensor: Tensor) -> None:
        """Give a tensor its nodes, and note which of them the plan keeps."""
        super().register(name, tensor)
        self.__dict__.pop("kept", None)
        for owner in self.nodes.owners[len(self._flags) :]:
            ids = self._plan.keep.get(owner.name, {}).get(owner.dim)
            stays = np.full(owner.size, ids is None)
            if ids is not None:
                stays[ids] = True
            self._flags.append(stays)

    @functools.cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Per node whether it stays; one more at the end, for FIXED."""
        return np.concatenate([*self._flags, np.ones(1, dtype=np.bool_)])

    def choose_axis(self, operator: str, tables: Sequence[NodeIds]) -> int | None:
        """The way in which the plan removes whole rows."""
        if self.given_picks is not None:
            return super().choose_axis(operator, tables)
        for way, table in enumerate(tables):
            flags = self.kept[table]
            if len(table) > 1 and (flags == flags[:, :1]).all():
                return way
        return None


class _ReferenceMode(TraceMode):
    """Applies normalisations and averages to kept entries only."""

    tracer: _PlanTracer

    def __init__(self, tracer: _PlanTracer) -> None:
        super().__init__(tracer)

    def call(self, function: Any, args: Any, kwargs: Any, bound: Mapping[str, Any]) -> Any:
        name = operator_name(function)
        if name in NORMALISING:
            x = bound["self"]
            return function(self._narrow(x, reduced_dims(bound, x.dim())), *args[1:], **kwargs)
        if name in _LAYER_NORMS:
            return self._layer_norm(function, bound)
        if name == "aten.native_group_norm":
            return self._group_norm(function, bound)
        if bound.get("training") and isinstance(bound.get("input"), Tensor):
            return self._batch_statistics(function, bound)
        if name == "aten._weight_norm_interface":
            weight, norms = function(*args, **kwargs)
            # A row of zeros has no direction; its weight is zero over zero.
            return weight.nan_to_num(nan=0.0), norms
        return function(*args, **kwargs)

    def _stays(self, x: Tensor, dim: int) -> IndexTable | None:
        """Kept places along a dimension, or None where all are."""
        ids = self.tracer.labels(x).dims[dim]
        if ids is None or self.tracer.kept[ids].all():
            return None
        return np.flatnonzero(self.tracer.kept[ids])

    def _narrow(self, x: Tensor, dims: Sequence[int] | set[int]) -> Tensor:
        for dim in dims:
            stays = self._stays(x, dim)
            if stays is not None:
                x = x.index_select(dim, _on(x, stays))
        return x

    def _layer_norm(self, function: Any, bound: Mapping[str, Any]) -> Any:
        x, shape = bound["input"], list(bound["normalized_shape"])
        dims = range(x.dim() - len(shape), x.dim())
        stays = [self._stays(x, d) for d in dims]
        new = dict(bound)
        for back, s in enumerate(reversed(stays), 1):
            if s is None:
                continue
            shape[-back] = len(s)
            for key in ("input", "weight", "bias"):
                if isinstance(new.get(key), Tensor):
                    new[key] = new[key].index_select(new[key].dim() - back, _on(x, s))
        new["normalized_shape"] = shape
        out, *rest = function(**new)
        for d, s in zip(dims, stays, strict=True):
            out = _widened(out, d, s, x.shape[d])
        return (out, *rest)

    def _batch_statistics(self, function: Any, bound: Mapping[str, Any]) -> Any:
        """A batch norm's own statistics, taken over kept entries: standardised weights."""
        x = bound["input"]
        stays = {d: self._stays(x, d) for d in range(x.dim()) if d != 1}
        new = {**bound, "input": self._narrow(x, [d for d, s in stays.items() if s is not None])}
        out, *rest = function(**new)
        for d, s in stays.items():
            out = _widened(out, d, s, x.shape[d])
        return (out, *rest)

    def _group_norm(self, function: Any, bound: Mapping[str, Any]) -> Any:
        x = bound["input"]
        stays = self._stays(x, 1)
        if stays is None:
            return function(**bound)
        new = dict(bound)
        new["input"] = x.index_select(1, _on(x, stays)).contiguous()
        for key in ("weight", "bias"):
            if isinstance(new.get(key), Tensor):
                new[key] = new[key].index_select(0, _on(x, stays))
        # Whole groups went if one of them kept nothing.
        new["group"] = len(np.unique(stays // (x.shape[1] // bound["group"])))
        new["C"] = len(stays)
        out, *rest = function(**new)
        return (_widened(out, 1, stays, x.shape[1]), *rest)


def _on(x: Tensor, places: IndexTable) -> Tensor:
    return torch.from_numpy(places).to(x.device)


def _widened(x: Tensor, dim: int, places: IndexTable | None, length: int) -> Tensor:
    """The entries back at their places, zeros between them."""
    if places is None:
        return x
    shape = list(x.shape)
    shape[dim] = length
    return x.new_zeros(shape).index_copy(dim, _on(x, places), x)
