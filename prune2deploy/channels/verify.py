"""Try a plan on the real forward pass: the cut model must give the reference's numbers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prune2deploy.channels.copying import copied
from prune2deploy.channels.cut import cut
from prune2deploy.channels.forward import Inputs, call_model, mode_kept, output_tensors
from prune2deploy.channels.groups import matches
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.plan import Plan
from prune2deploy.channels.reference import run_reference
from prune2deploy.errors import ModelError, nearest_name_hint

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Relative difference in float32 that rounding explains; a wrong channel gives about 1."""

TOLERANCE_64 = 1e-9
"""The same in float64."""


@dataclass(frozen=True)
class Trial:
    """What a cut did on the real forward pass.

    difference: largest absolute difference between cut and reference outputs, over
        the largest absolute value of the reference's; NaN if they are not finite.
    error: why the cut model does not run, or None.
    """

    difference: float
    error: str | None = None

    @property
    def held(self) -> bool:
        """Whether the cut model runs and agrees. Not-a-number on both sides proves nothing."""
        return self.error is None and not self.difference > TOLERANCE


def try_plan(model: nn.Module, plan: Plan, inputs: Inputs) -> Trial:
    """Cut a copy, run it, and compare it with the reference; eval mode, no gradients.

    The reference is the whole model with all removed entries zero, in which normalisations and
    averages over a cut dimension see the kept entries only.
    """
    with torch.no_grad():
        small = cut(model, plan)
        try:
            with mode_kept(small, training=False):
                got = call_model(small, inputs)
        except Exception as err:  # whatever a model's own code raises is the answer here
            return Trial(float("nan"), f"{type(err).__name__}: {err}")
        want = run_reference(model, plan, inputs)
    return _compare(got, want)


class Proof:
    """Compares the numbers of cut and reference in float64, where rounding hides nothing.

    A model that does not run in float64 is compared as it is.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._given = (model, inputs)

    @functools.cached_property
    def _subject(self) -> tuple[nn.Module, Inputs, float]:
        model, inputs = self._given
        try:
            double = copied(model, {}).double()
            wide = tree_map(_as_double, inputs)
            with torch.no_grad(), mode_kept(double, training=False):
                call_model(double, wide)
        except Exception as err:  # whatever a model's own code raises
            log.debug("Not compared in float64: %s: %s", type(err).__name__, err)
            return model, inputs, TOLERANCE
        return double, wide, TOLERANCE_64

    def __call__(self, plan: Plan) -> str | None:
        """What is wrong with a cut; None: nothing."""
        model, inputs, tolerance = self._subject
        trial = try_plan(model, plan, inputs)
        if trial.error is not None:
            return trial.error
        if trial.difference > tolerance:
            return "the results are others than they should be"
        return None


def _as_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _compare(got: Any, want: Any) -> Trial:
    a, b = output_tensors(got), output_tensors(want)
    if [x.shape for x in a] != [x.shape for x in b]:
        shapes = f"{[tuple(x.shape) for x in a]} instead of {[tuple(x.shape) for x in b]}"
        return Trial(float("nan"), f"the output's shape changes: {shapes}")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not y.numel() or not y.is_floating_point():
            continue
        finite = y.isfinite()
        if not torch.equal(x.isfinite(), finite):
            return Trial(float("inf"))
        if not finite.any():
            worst = float("nan")
            continue
        scale = float(y[finite].abs().max())
        gap = float((x - y)[finite].abs().max())
        worst = max(worst, gap / scale if scale > 0 else gap, key=lambda v: (v != v, v))
    return Trial(worst)


def check_exclude(model: nn.Module, exclude: Collection[str]) -> None:
    """Refuse a pattern that names nothing: a typing error would prune what must stay.

    Raises:
        ModelError: names the pattern and the nearest module.
    """
    names = list(tensors_of(model))
    for pattern in exclude:
        if not any(matches(name, pattern) for name in names):
            modules = [n for n, _ in model.named_modules() if n]
            raise ModelError(
                f"exclude: '{pattern}' matches no parameter or module of the model. "
                + nearest_name_hint(pattern, modules[:200])
            )
