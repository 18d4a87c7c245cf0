"""Published pruning methods: one per file, and this table of them."""

from typing import Any

from prune2deploy.methods import (
    ccprune,
    chip,
    csgd,
    fpgm,
    greg1,
    greg2,
    l1,
    l2,
    network_slimming,
    nisp,
    oicsr,
    oto,
    polarization,
    rsnli,
    sfp,
    ssl,
    taylor,
)
from prune2deploy.methods.base import Context, Method, MethodOptions, Normalisation

METHODS: dict[str, type[Method[Any]]] = {
    module.METHOD.name: module.METHOD
    for module in (
        ccprune,
        chip,
        csgd,
        csgd,
        fpgm,
        greg1,
        greg2,
        greg1,
        greg2,
        l1,
        l2,
        network_slimming,
        nisp,
        oicsr,
        oto,
        oto,
        polarization,
        rsnli,
        sfp,
        ssl,
        ssl,
        taylor,
    )  # A to Z
}

__all__ = ["METHODS", "Context", "Method", "MethodOptions", "Normalisation"]
