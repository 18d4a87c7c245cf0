"""The table of pruning methods, without their code: importing it costs no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from prune2deploy.methods.options import (
    CCPruneOptions,
    ChipOptions,
    MethodOptions,
    NetworkSlimmingOptions,
)

Cost = Literal["seconds", "minutes", "one training run", "several training runs"]


@dataclass(frozen=True)
class MethodInfo:
    """What a person or the recipe's schema wants to know about a method."""

    name: str
    summary: str
    cost: Cost
    source: str
    options: type[MethodOptions] = MethodOptions
    needs_training: bool = False
    needs_data: bool = False

    def load(self) -> Any:
        """Import the file that implements the method and return its METHOD."""
        return importlib.import_module(f"prune2deploy.methods.{self.name}").METHOD


_ALL = (
    MethodInfo(
        name="ccprune",
        summary="filter size and batch-norm scale together, both penalised in training",
        cost="several training runs",
        source="Chen, Wen, Zhang, Shi: CCPrune: Collaborative channel pruning for learning "
        "compact convolutional networks, Neurocomputing 2021, "
        "https://doi.org/10.1016/j.neucom.2021.04.063",
        options=CCPruneOptions,
        needs_training=True,
    ),
    MethodInfo(
        name="chip",
        summary="how much of a layer's feature maps no other channel can replace",
        cost="minutes",
        source="Sui, Yin, Xie, Phan, Zonouz, Yuan: CHIP: CHannel Independence-based Pruning for "
        "Compact Neural Networks, NeurIPS 2021, https://arxiv.org/abs/2110.13981",
        options=ChipOptions,
        needs_data=True,
    ),
    MethodInfo(
        name="l1",
        summary="sum of a filter's absolute weights",
        cost="seconds",
        source="Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, "
        "ICLR 2017, https://arxiv.org/abs/1608.08710",
    ),
    MethodInfo(
        name="network_slimming",
        summary="size of the batch-norm scale after training with a penalty on it",
        cost="one training run",
        source="Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks "
        "through Network Slimming, ICCV 2017, https://arxiv.org/abs/1708.06519",
        options=NetworkSlimmingOptions,
        needs_training=True,
    ),
)

METHODS = {method.name: method for method in _ALL}
