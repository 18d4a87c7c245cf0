"""Run a model over a loader, to measure it or to give its batch norms new statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy import progress
from prune2deploy.errors import DataError
from prune2deploy.train.precision import resolve_precision
from prune2deploy.train.tasks import Task

logger = logging.getLogger(__name__)


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
    """Measure the statistics of all batch norms anew, in place; weights do not change.

    Paper: Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
    Pruning", ECCV 2020, https://arxiv.org/abs/2007.02491: after a cut the old
    statistics no longer fit. Differs from the paper: batches are averaged with equal
    weights, which needs fewer of them than the moving average, and everything but the
    batch norms stays in eval mode (no dropout).

    Args:
        model: in any mode, on any device; flags and momentum are left as they were.
        loader: training images; batches of equal size, because they count equally.
            A batch of one image is passed over: it has no deviation.
        batches: how many at most, at least 1.

    Returns:
        The number of batches used; 0 for a model without batch norms.

    Raises:
        DataError: the loader gave no batch of two images or more. The statistics are
            then as they were.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return 0
    before = [{k: v.clone() for k, v in norm.named_buffers(recurse=False)} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    used = 0
    try:
        with training_flags_kept(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                # Means "the plain average of all batches" to PyTorch.
                norm.momentum = None
            used = _run(model, loader, batches)
    finally:
        for norm, momentum, old in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            # A norm that the forward pass did not reach (an auxiliary head, say)
            # would be left with mean 0 and variance 1.
            if not used or not norm.num_batches_tracked:
                for name, value in old.items():
                    norm.get_buffer(name).copy_(value)
    if not used:
        raise DataError(
            "Batch-norm statistics need batches of at least 2 images, and the loader gave none. "
            "Raise data.batch_size, or add training images."
        )
    logger.info("Measured %d batch norms anew on %d batches", len(norms), used)
    return used


def _run(model: nn.Module, loader: Iterable[tuple[Tensor, Any]], batches: int) -> int:
    device = device_of(model)
    used = 0
    with progress.task("Recalibrating batch norms", total=batches) as shown:
        for images, _ in loader:
            if used == batches:
                break
            if len(images) < 2:
                continue
            model(images.to(device))
            used += 1
            shown.advance()
    return used
