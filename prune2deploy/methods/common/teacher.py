"""The network as it was before training, for methods that learn from its answers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.channels.forward import Inputs, call_model
from prune2deploy.errors import MethodError


class Teacher:
    """A frozen copy of a model, in eval mode.

    Args:
        model: copied as it is now.
        method: name of the method, for its messages.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._method = method

    def classes(self, inputs: Inputs) -> int:
        """How many numbers an answer has for each sample. inputs: an example.

        Raises:
            MethodError: the output is not one tensor.
        """
        with torch.no_grad():
            answer = call_model(self._model, inputs)
        self._check(answer)
        return _rows(answer).shape[1]

    def _check(self, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise MethodError(
                f"{self._method} compares the answers of two networks and needs each as one "
                f"tensor; the model's output is of type {type(output).__name__}. Choose another "
                "method, for example network_slimming."
            )

    def answers(self, images: Tensor, output: Any) -> tuple[Tensor, Tensor]:
        """The teacher's answer to these images and the student's, with the classes last.

        Args:
            images: a batch.
            output: what the student makes of it.

        Returns:
            Both float32, shape (samples, classes); a place in a map counts as a sample.

        Raises:
            MethodError: the output is not one tensor.
        """
        self._check(output)
        self._model.to(images.device)
        with torch.no_grad():
            answer = self._model(images)
        return _rows(answer), _rows(output)


def _rows(answer: Tensor) -> Tensor:
    if answer.dim() < 2:
        return answer.reshape(len(answer), 1).float()
    return answer.movedim(1, -1).flatten(0, -2).float()
