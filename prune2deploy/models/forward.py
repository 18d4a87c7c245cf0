"""One forward pass, to learn early whether a model runs and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.models.user_code import explain

# Two, so that the batch dimension can be told from a dimension of one.
_BATCH = 2


@dataclass(frozen=True)
class OutputInfo:
    """What a model returns for a batch of two images."""

    description: str
    classes: int | None
    """Columns of a (batch, classes) output; None for any other structure."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients; every layer's mode is restored after."""
    was_training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in model.modules():
            module.training = module in was_training


def check_forward(model: nn.Module, input_shape: Sequence[int]) -> OutputInfo:
    """Run the model once in eval mode on random numbers; its mode is restored.

    Args:
        input_shape: (channels, height, width).

    Raises:
        ModelError: the forward pass fails; with the model's own error and its line.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_BATCH, *input_shape)
    first = next(model.parameters(), None)
    images = torch.randn(shape, generator=generator)
    if first is not None:
        images = images.to(first.device)
    try:
        with evaluating(model):
            output = model(images)
    except Exception as err:
        raise ModelError(
            f"The model's forward pass failed on an input of shape {shape}: {explain(err)}. "
            "Check model.input ([channels, height, width]) against what the model expects."
        ) from err
    is_scores = isinstance(output, Tensor) and output.ndim == 2 and output.shape[0] == _BATCH
    return OutputInfo(_describe(output), int(output.shape[1]) if is_scores else None)


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{key}: {_describe(value)}" for key, value in output.items()) + "}"
    if isinstance(output, (list, tuple)):
        return "[" + ", ".join(_describe(value) for value in output) + "]"
    return type(output).__name__
