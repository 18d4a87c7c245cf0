"""Build a model from the source that a recipe names."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune2deploy.errors import ModelError, nearest_name_hint, require
from prune2deploy.models import (
    cifar_densenet,
    cifar_preact_resnet,
    cifar_resnet,
    cifar_vgg,
    convnet,
)
from prune2deploy.models.checkpoint import load_weights_into
from prune2deploy.models.user_code import explain, import_from_file, importable, split_spec

_log = logging.getLogger(__name__)

_BUILT_IN: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "cifar": {
        "resnet20": cifar_resnet.resnet20,
        "resnet32": cifar_resnet.resnet32,
        "resnet44": cifar_resnet.resnet44,
        "resnet56": cifar_resnet.resnet56,
        "resnet110": cifar_resnet.resnet110,
        "preact_resnet164": cifar_preact_resnet.preact_resnet164,
        "vgg16_bn": cifar_vgg.vgg16_bn,
        "vgg19_bn": cifar_vgg.vgg19_bn,
        "densenet40": cifar_densenet.densenet40,
    },
    "digits": {"convnet": convnet.convnet},
}


def load_model(
    source: str,
    args: Mapping[str, Any],
    *,
    base_dir: Path,
    num_classes: int | None,
    checkpoint: Path | None,
) -> nn.Module:
    """Build a model and load its weights.

    Args:
        source: "torchvision:NAME", "timm:NAME", "cifar:resnetN", "digits:convnet" or
            "path/to/file.py:function".
        args: keyword arguments for whatever builds the model.
        base_dir: where relative file paths in `source` start.
        num_classes: passed on as `num_classes` unless `args` holds it, or a user's
            function does not take it. None: the builder's own default.
        checkpoint: file of weights, or None for the weights the builder gives.

    Returns:
        The model in eval mode, float32, on the CPU.

    Raises:
        ModelError: unknown source, a builder that fails, or a checkpoint that does not fit.
        MissingDependencyError: timm is needed and not installed.
    """
    _check_class_count(args, num_classes)
    model = _build(source, dict(args), base_dir, num_classes)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ModelError(
            f"The model of '{source}' has lazy layers whose shapes are not known yet. "
            "Run it once on an input of the right shape before returning it."
        )
    other_types = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
    if other_types:
        _log.info("Weights of type %s were converted to float32.", ", ".join(sorted(other_types)))
    model = model.to("cpu").float().eval()
    if checkpoint is not None:
        load_weights_into(model, checkpoint, num_classes=num_classes)
    return model


def _check_class_count(args: Mapping[str, Any], num_classes: int | None) -> None:
    given = args.get("num_classes", num_classes)
    if num_classes is not None and given != num_classes:
        raise ModelError(
            f"model.args asks for num_classes: {given}, but the data has {num_classes} classes. "
            "Leave num_classes out of model.args, or correct the data."
        )


def _build(source: str, args: dict[str, Any], base_dir: Path, num_classes: int | None) -> nn.Module:
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _from_torchvision(name, args, num_classes)
    if kind == "timm":
        return _from_timm(name, args, num_classes)
    if kind in _BUILT_IN:
        builders = _BUILT_IN[kind]
        if name not in builders:
            raise ModelError(f"'{kind}:' has no model '{name}'. {_hint(name, builders)}")
        return _call(source, builders[name], args, num_classes)
    if ".py" in source:
        return _from_file(source, args, base_dir, num_classes)
    kinds = ("torchvision", "timm", *_BUILT_IN)
    raise ModelError(
        f"Model source '{source}' is not understood. Expected one of "
        f"{', '.join(f'{k}:NAME' for k in kinds)} or path/to/file.py:function. "
        f"{nearest_name_hint(kind, kinds)}"
    )


def _from_torchvision(name: str, args: dict[str, Any], num_classes: int | None) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ModelError(f"torchvision has no model '{name}'. {_hint(name, known)}")
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # The default would download.
    if name in ("googlenet", "inception_v3"):
        # The default takes many seconds and warns that it will change to this.
        options["init_weights"] = False
    if num_classes is not None:
        options["num_classes"] = num_classes
    return _built(f"torchvision:{name}", lambda: models.get_model(name, **{**options, **args}))


def _from_timm(name: str, args: dict[str, Any], num_classes: int | None) -> nn.Module:
    timm = require("timm", extra="timm")
    known = timm.list_models()
    # A tag after the dot names pretrained weights: "resnet18.a1_in1k".
    if name.partition(".")[0] not in known:
        raise ModelError(f"timm has no model '{name}'. {_hint(name, known)}")
    options: dict[str, Any] = {"pretrained": False}
    if num_classes is not None:
        options["num_classes"] = num_classes
    return _built(f"timm:{name}", lambda: timm.create_model(name, **{**options, **args}))


def _from_file(
    source: str, args: dict[str, Any], base_dir: Path, num_classes: int | None
) -> nn.Module:
    builder = import_from_file(source, base_dir)
    if isinstance(builder, nn.Module) or not callable(builder):
        raise ModelError(
            f"'{source}' is a {type(builder).__name__}, not something that builds a model. "
            "Name a function (or class) that returns the torch.nn.Module when called."
        )
    with importable(split_spec(source, base_dir)[0].parent):
        return _call(source, builder, args, num_classes)


def _call(
    source: str, builder: Callable[..., Any], args: dict[str, Any], num_classes: int | None
) -> nn.Module:
    """Call a builder whose signature can be read, so that a wrong argument is named."""
    signature = inspect.signature(builder)
    if num_classes is not None and "num_classes" in signature.parameters:
        args = {"num_classes": num_classes, **args}
    try:
        signature.bind(**args)
    except TypeError as err:
        raise ModelError(
            f"'{source}' cannot be called with model.args {args}: {err}. "
            f"Its signature is {signature}."
        ) from err
    return _built(source, lambda: builder(**args))


def _built(source: str, build: Callable[[], Any]) -> nn.Module:
    try:
        model = build()
    except Exception as err:
        raise ModelError(
            f"'{source}' could not be built: {explain(err)}. Check model.args."
        ) from err
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{source}' returned a {type(model).__name__}; expected a torch.nn.Module."
        )
    return model


def _hint(name: str, known: Collection[str]) -> str:
    """List a few names, or find the nearest of many; never list a thousand."""
    if len(known) <= 8:
        return f"Known: {', '.join(known)}."
    if difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return nearest_name_hint(name, known)
    return f"It has {len(known)} models, none with a similar name."
