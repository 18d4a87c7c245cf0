"""Give the tensors that a model returns names, whatever structure they come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prune2deploy.errors import ExportError
from prune2deploy.models import evaluating, explain

#: From a model's output to its tensors by name, in the order of the ONNX outputs.
NameOutputs: TypeAlias = Callable[[Any], Mapping[str, Tensor]]


def name_outputs(output: Any) -> dict[str, Tensor]:
    """Return the tensors of any nested output by name.

    A single tensor is "output"; the parts of dictionaries are named by their keys,
    those of lists and tuples by their position, nested names joined with "_"
    ("output_0", "scores", "boxes_1"). None is left out.

    Raises:
        ExportError: there is something else than tensors in it, or nothing at all.
    """
    if isinstance(output, Tensor):
        return {"output": output}
    named = dict(_parts("", output))
    if not named:
        raise ExportError(
            f"The model returned {type(output).__name__} without tensors; expected tensors."
        )
    return named


def _parts(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    if value is None:
        return []
    if isinstance(value, Mapping):
        children = [(f"{name}_{key}" if name else str(key), v) for key, v in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{name or 'output'}_{index}", v) for index, v in enumerate(value)]
    else:
        raise ExportError(
            f"The model's output holds a {type(value).__name__}; an ONNX model returns tensors "
            "only. Return tensors (in lists, tuples or dictionaries), or name the tensors "
            "to export in the task's outputs()."
        )
    return [part for child_name, child in children for part in _parts(child_name, child)]


def run_named(model: nn.Module, images: Tensor, outputs: NameOutputs) -> dict[str, Tensor]:
    """Run the model in eval mode and name what it returns.

    Args:
        images: float32 (batch, channels, height, width), on the CPU.

    Returns:
        Tensors on the CPU.

    Raises:
        ExportError: the forward pass fails.
    """
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    try:
        with evaluating(model):
            output = model(images.to(device))
    except Exception as err:
        raise ExportError(
            f"The model's forward pass failed on an input of shape {tuple(images.shape)}: "
            f"{explain(err)}."
        ) from err
    return {name: tensor.cpu() for name, tensor in outputs(output).items()}


class NamedOutputs(nn.Module):
    """The model, returning a tuple of exactly the tensors that have a name."""

    def __init__(self, model: nn.Module, outputs: NameOutputs) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(self.model(images)).values())
