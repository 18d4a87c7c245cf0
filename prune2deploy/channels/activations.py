"""Look at the activations that channels appear in, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.channels.forward import (
    CONTRACTIONS,
    Inputs,
    OperatorMode,
    call_model,
    mode_kept,
    operator_name,
)

Visitor = Callable[[int, Tensor], None]
"""Called with a site's number and the tensor that the site reads, before it reads it."""


class _ReadMode(OperatorMode):
    def __init__(self, sites: Collection[int], visit: Visitor) -> None:
        super().__init__()
        self._sites = sites
        self._visit = visit
        self._count = 0

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = operator_name(function)
        if name in CONTRACTIONS:
            if self._count in self._sites:
                # addmm has the bias first
                self._visit(self._count, args[1] if name == "aten.addmm" else args[0])
            self._count += 1
        return function(*args, **kwargs)


def read_activations(
    model: nn.Module, inputs: Inputs, sites: Collection[int], visit: Visitor
) -> None:
    """Run the model in eval mode without gradients and show what some sites read.

    Args:
        sites: numbers as in Tap.site; the same for any batch size.
        visit: gets each tensor as it is; to keep it, copy it, for it may be
            overwritten in place later.
    """
    with torch.no_grad(), mode_kept(model, training=False), _ReadMode(set(sites), visit):
        call_model(model, inputs)
