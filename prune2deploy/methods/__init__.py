"""Published pruning methods: one per file, and this table of them."""

from typing import Any

from prune2deploy.methods import (
    ccprune,
    chip,
    fpgm,
    gsm,
    han,
    l1,
    l2,
    lottery_ticket,
    network_slimming,
    nisp,
    oicsr,
    polarization,
    rsnli,
    sfp,
    sparse_momentum,
    taylor,
)
from prune2deploy.methods.base import Context, Method, MethodOptions, Normalisation

METHODS: dict[str, type[Method[Any]]] = {
    module.METHOD.name: module.METHOD
    for module in (
        ccprune,
        chip,
        fpgm,
        gsm,
        han,
        l1,
        l2,
        lottery_ticket,
        network_slimming,
        nisp,
        oicsr,
        polarization,
        rsnli,
        sfp,
        sparse_momentum,
        taylor,
    )  # A to Z
}

__all__ = ["METHODS", "Context", "Method", "MethodOptions", "Normalisation"]
