"""Torch-Pruning on the models of `engine.py`, used as its README and its examples use it.

Its examples tell it which layers make the classes or boxes, how many heads an attention block
has, and afterwards set the attribute that torchvision's ViT reads. Layers of a model's own, for
which a user could write a pruner, get none. For ViT the examples give the heads as channel groups,
which narrows every head; given as num_heads, this version leaves attention and the embedding whole.
"""

from __future__ import annotations

from typing import Any

import torch_pruning as tp
from coverage_models import Subject
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

CLASSES = {"torchvision": 1000, "segmentation": 21}
RATIO, ROUND_TO = 0.5, 8

_RPN = ("rpn.head.cls_logits", "rpn.head.bbox_pred")
_HEADS = ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
DETECTION_IGNORED = {
    "fasterrcnn": (*_RPN, "backbone.fpn", "roi_heads"),
    "maskrcnn": (*_RPN, "roi_heads.box_predictor", "roi_heads.mask_predictor"),
    "keypointrcnn": (
        *(*_RPN, "backbone.fpn.layer_blocks", "roi_heads.box_head"),
        *("roi_heads.box_predictor", "roi_heads.keypoint_predictor"),
    ),
    "retinanet": _HEADS,
    "fcos": (*_HEADS, "head.regression_head.bbox_ctrness"),
    "ssd300": ("head",),
    "ssdlite320": ("head",),
}
"""Per start of a name what its examples ignore, also for the variants they do not try."""


def make_pruner(key: str, subject: Subject) -> Any:
    """A pruner for `subject.model` by L1 norms at half the channels of each group."""
    model = subject.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    windows = [m for m in model.modules() if isinstance(m, ShiftedWindowAttention)]
    return tp.pruner.MagnitudePruner(
        model,
        subject.example,
        tp.importance.MagnitudeImportance(p=1),
        global_pruning=False,
        pruning_ratio=RATIO,
        round_to=ROUND_TO,
        ignored_layers=ignored_layers(key, model),
        # Given in full, as its defaults are one dict for all pruners of a process.
        in_channel_groups={},
        out_channel_groups={m: m.num_heads for m in attention},
        num_heads={m.qkv: m.num_heads for m in windows},
    )


def ignored_layers(key: str, model: nn.Module) -> list[nn.Module]:
    """The layers whose outputs are the model's answer."""
    family, name = key.split(":")
    if family == "detection":
        return [model.get_submodule(path) for path in DETECTION_IGNORED[name.split("_")[0]]]
    made = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [m for m in made if m.weight.shape[0] == CLASSES[family]]


def prune(pruner: Any) -> nn.Module:
    """Remove the channels, in place, and set what torchvision's ViT states in an attribute."""
    pruner.step()
    model: nn.Module = pruner.model
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels
    return model


def prunable_channels(pruner: Any) -> int:
    """Output channels in any of its groups, of the layers that `coverage_measure` counts."""
    graph = pruner.DG
    groups = graph.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    )
    places: dict[nn.Module, set[int]] = {}
    for group in groups:
        for dep, indices in group:
            layer = dep.target.module
            counted = isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention))
            if counted and graph.is_out_channel_pruning_fn(dep.handler):
                places.setdefault(layer, set()).update(int(i) for i in indices)
    # An attention block makes queries, keys, values and its output.
    copies = {m: 4 if isinstance(m, nn.MultiheadAttention) else 1 for m in places}
    return sum(copies[layer] * len(found) for layer, found in places.items())
