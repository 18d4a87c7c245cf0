"""Run a model over a loader, to measure it or to give its batch norms new statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.models import recalibrate
from prune2deploy.train.precision import resolve_precision
from prune2deploy.train.tasks import Task


class Batches(Protocol):
    """Batches of images and targets, and how many there are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]: ...


def evaluate(
    model: nn.Module,
    task: Task,
    loader: Batches,
    *,
    precision: Literal["auto", "fp32", "bf16"] = "fp32",
    label: str = "Evaluating",
) -> dict[str, float]:
    """Return the task's figures for a model, in eval mode, on the device where the model is.

    Args:
        model: left as it is, its training flags included.
        task: says what is measured.
        loader: batches of images and targets, on any device.
        precision: bf16 is autocast.
        label: for the progress bar.
    """
    device = device_of(model)
    bf16 = resolve_precision(precision, device) == "bf16"
    with training_flags_kept(model), torch.no_grad():
        model.eval()
        with progress.task(label, total=len(loader)) as shown:
            return task.evaluate(_Predictor(model, bf16), _on_device(loader, device, shown))


class _Predictor:
    """Runs the model in channels_last, half as fast again, unless it does not bear that."""

    def __init__(self, model: nn.Module, bf16: bool) -> None:
        self._model = model
        self._bf16 = bf16
        self._format = torch.channels_last

    def __call__(self, images: Tensor) -> Any:
        try:
            output = self._run(images)
        except RuntimeError as err:
            if not is_view_across_channels(err) or self._format is torch.contiguous_format:
                raise
            self._format = torch.contiguous_format
            output = self._run(images)
        return map_tensors(output, _to_float32)

    def _run(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self._model(images.contiguous(memory_format=self._format))


def is_view_across_channels(err: RuntimeError) -> bool:
    """Return whether a forward pass failed because its tensors were in channels_last."""
    return "view size is not compatible" in str(err)


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _on_device(
    loader: Batches, device: torch.device, shown: progress.Task
) -> Iterator[tuple[Tensor, Any]]:
    for images, targets in loader:
        yield images.to(device), map_tensors(targets, lambda tensor: tensor.to(device))
        shown.advance()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same structure of tuples, lists and dictionaries with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, change) for v in value)
    return value


@contextmanager
def training_flags_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its train or eval mode back afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def recalibrate_batchnorm(
    model: nn.Module, loader: Iterable[tuple[Tensor, Any]], batches: int
) -> int:
    """Measure the statistics of all batch norms anew; `models.recalibrate` for a loader.

    Args:
        loader: batches of training images and targets.
    """
    return recalibrate(model, (images for images, _ in loader), batches)
