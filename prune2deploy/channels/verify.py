"""Try cuts on the real forward pass, and freeze what breaks it.

Shapes that a model hard-codes in its own forward (a `view(n, 512 * 7 * 7)`, a
slice at a fixed channel) cannot be seen in a trace. So before a graph is handed
out, half of every group is cut from a copy, which must run and give the numbers
of the zeroed original. If not, the groups at fault are found and frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prune2deploy.channels.cut import cut, mask
from prune2deploy.channels.forward import Inputs, call_model, mode_kept, output_tensors
from prune2deploy.channels.graph import Graph
from prune2deploy.channels.groups import matches
from prune2deploy.channels.labels import tensors_of
from prune2deploy.channels.plan import Plan
from prune2deploy.errors import ModelError, nearest_name_hint

TOLERANCE = 1e-3
"""Relative difference in float32 that rounding explains; a wrong channel gives about 1."""


@dataclass(frozen=True)
class Trial:
    """What a cut did on the real forward pass.

    difference: largest absolute difference between cut and zeroed outputs, over
        the largest absolute value of the zeroed ones; NaN if they are not finite.
    error: why the cut model does not run, or None.
    """

    difference: float
    error: str | None = None

    @property
    def held(self) -> bool:
        """Whether the cut model runs and agrees. Not-a-number on both sides proves nothing."""
        return self.error is None and not self.difference > TOLERANCE


def try_plan(model: nn.Module, plan: Plan, inputs: Inputs) -> Trial:
    """Cut a copy, run it, and compare it with the zeroed original; eval mode, no gradients."""
    with torch.no_grad():
        small = cut(model, plan)
        try:
            with mode_kept(small, training=False):
                got = call_model(small, inputs)
        except Exception as err:  # whatever a model's own code raises is the answer here
            return Trial(float("nan"), f"{type(err).__name__}: {err}")
        zeros = mask(model, plan)
        with mode_kept(zeros, training=False):
            want = call_model(zeros, inputs)
    return _compare(got, want)


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


def breaking_groups(graph: Graph) -> dict[int, str]:
    """Numbers of the groups whose cut breaks the forward pass, each with the reason."""
    numbers = [n for n, group in enumerate(graph.groups) if group.size > 1]
    stuck = {n: "a single channel" for n, g in enumerate(graph.groups) if g.size == 1}
    if numbers and _try(graph, numbers) is not None:
        stuck.update(_search(graph, numbers))
        left = [n for n in numbers if n not in stuck]
        why = _try(graph, left) if left else None
        if why is not None:
            # Each alone is fine and together they are not: no subset can be trusted.
            stuck.update(
                dict.fromkeys(left, f"breaks the forward pass together with others: {why}")
            )
    return stuck


def _try(graph: Graph, numbers: Sequence[int]) -> str | None:
    """Cut every other channel of these groups; return what went wrong, if anything did."""
    chosen = set(numbers)
    kept = [
        np.arange(0, g.size, 2) if n in chosen else np.arange(g.size)
        for n, g in enumerate(graph.groups)
    ]
    trial = try_plan(graph.model, graph.plan(kept), graph.inputs)
    if trial.held:
        return None
    if trial.error is not None:
        return trial.error
    return f"the cut model's output differs by {trial.difference:.1e} from the zeroed one's"


def _search(graph: Graph, numbers: Sequence[int]) -> dict[int, str]:
    """Halve the groups until those at fault are found: few trials when few are."""
    why = _try(graph, numbers)
    if why is None:
        return {}
    if len(numbers) == 1:
        return {numbers[0]: f"cutting it breaks the forward pass: {why}"}
    middle = len(numbers) // 2
    return _search(graph, numbers[:middle]) | _search(graph, numbers[middle:])


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
