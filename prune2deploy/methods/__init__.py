"""Published pruning methods: one per file, and this table of them."""

from importlib import import_module
from typing import Any

from prune2deploy.methods.base import Context, Method, MethodOptions, Normalisation

_FILES = (
    "bar",
    "ccprune",
    "chip",
    "csgd",
    "dmc",
    "eagleeye",
    "fpgm",
    "gal",
    "gbn",
    "gdp",
    "greg1",
    "greg2",
    "gsm",
    "han",
    "l1",
    "l2",
    "lottery_ticket",
    "network_slimming",
    "nisp",
    "oicsr",
    "oto",
    "polarization",
    "resrep",
    "rsnli",
    "scop",
    "scp",
    "sep",
    "sfp",
    "sparse_momentum",
    "ssl",
    "sss",
    "taylor",
    "thinet",
    "vcnnp",
)  # A to Z

METHODS: dict[str, type[Method[Any]]] = {
    name: import_module(f"prune2deploy.methods.{name}").METHOD for name in _FILES
}

__all__ = ["METHODS", "Context", "Method", "MethodOptions", "Normalisation"]
