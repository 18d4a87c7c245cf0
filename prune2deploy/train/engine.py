"""Where training runs: devices, precision and processes, through Lightning Fabric."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from prune2deploy.errors import TrainingError
from prune2deploy.train.evaluation import (
    device_of,
    is_view_across_channels,
    training_flags_kept,
)
from prune2deploy.train.precision import resolve_precision
from prune2deploy.train.settings import TrainSettings

logger = logging.getLogger(__name__)


class Engine:
    """The devices of one run. With several, every process makes one and meets the others here.

    Args:
        settings: accelerator, devices, num_nodes, strategy and precision count.

    Raises:
        TrainingError: they are not to be had on this machine.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        device = _fabric(settings, "32-true").device
        self.precision: Literal["fp32", "bf16"] = resolve_precision(settings.precision, device)
        self._fabric = _fabric(settings, "bf16-mixed" if self.precision == "bf16" else "32-true")
        self._fabric.launch()
        self.device: torch.device = self._fabric.device
        self.rank: int = self._fabric.global_rank
        self.ranks: int = self._fabric.world_size
        self.channels_last = True

    def setup(
        self, model: nn.Module, others: Sequence[nn.Parameter] = ()
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the model as it is called in training, and its optimizer.

        others: parameters that somebody else moves.
        """
        settings = self._settings
        theirs = {id(p) for p in others}
        trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in theirs]
        if not trainable and others:
            # Nothing is left to train, but a step must still be something.
            return cast(nn.Module, self._fabric.setup(model)), _idle(others)
        if not trainable:
            raise TrainingError(
                "The model has no parameter to train. Check that it is built with "
                "requires_grad, or leave training out."
            )
        optimizer = torch.optim.SGD(
            trainable,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        wrapped, optimizer = self._fabric.setup(model, optimizer)
        return wrapped, optimizer

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return the tensor on this process's device."""
        return tensor.to(self.device, non_blocking=True)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the run's precision, for networks that were not set up."""
        context: AbstractContextManager[Any] = self._fabric.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over all processes."""
        self._fabric.backward(loss)

    def clip_gradients(
        self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        """Scale the whole gradient down to a norm of `max_norm` at most."""
        # A gradient that is not finite shows in the next loss, with our advice.
        self._fabric.clip_gradients(wrapped, optimizer, max_norm=max_norm, error_if_nonfinite=False)

    def sum_over_ranks(self, value: Tensor) -> float:
        """Return a scalar's sum over all processes; each must call this."""
        if self.ranks == 1:
            return float(value)
        # The clone because processes reduce in place.
        return float(cast(Tensor, self._fabric.all_reduce(value.clone(), reduce_op="sum")))

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the batch-norm statistics of the first one."""
        if self.ranks > 1:
            for buffer in model.buffers():
                buffer.copy_(self._fabric.broadcast(buffer))


def _idle(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer that moves nothing."""
    return torch.optim.SGD([parameters[0].new_zeros(1).requires_grad_()], lr=0.0)


def _fabric(settings: TrainSettings, precision: Literal["32-true", "bf16-mixed"]) -> Fabric:
    if settings.strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise TrainingError(
            f"strategy is {settings.strategy}; the trained weights would stay in the processes "
            "it starts. Use ddp."
        )
    fabric_log = logging.getLogger("lightning_fabric")
    level = fabric_log.level
    # It announces on stderr what the history says anyway.
    fabric_log.setLevel(logging.WARNING)
    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=precision,
        )
    # What it raises for a name or device it does not have differs from case to case.
    except (RuntimeError, ValueError, TypeError) as err:
        raise TrainingError(
            f"Lightning Fabric cannot start with accelerator {settings.accelerator}, devices "
            f"{settings.devices}, num_nodes {settings.num_nodes}, strategy {settings.strategy}: "
            f"{err} Use devices that this machine has, or accelerator cpu."
        ) from err
    finally:
        fabric_log.setLevel(level)


@contextmanager
def placed(
    engine: Engine, input_shape: tuple[int, int, int], model: nn.Module, teacher: nn.Module | None
) -> Iterator[None]:
    """Put both networks where the engine computes; afterwards they are where they were.

    Sets `engine.channels_last` to whether both bear that memory format. The teacher is
    in eval mode meanwhile.
    """
    models = [model] if teacher is None else [model, teacher]
    homes = [device_of(each) for each in models]
    with ExitStack() as flags:
        for each in models:
            flags.enter_context(training_flags_kept(each))
            each.eval()
        try:
            for each in models:
                each.to(engine.device)
                # Convolutions run up to twice as fast on pixels whose channels lie together.
                each.to(memory_format=torch.channels_last)
            engine.channels_last = all(_bears_channels_last(m, input_shape) for m in models)
            if not engine.channels_last:
                logger.info("The model views tensors across channels: no channels_last, slower")
                for each in models:
                    each.to(memory_format=torch.contiguous_format)
            yield
        finally:
            for each, home in zip(models, homes, strict=True):
                # Also because safetensors stores contiguous tensors only.
                each.to(memory_format=torch.contiguous_format)
                each.to(home)


def _bears_channels_last(model: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    images = torch.zeros(2, *input_shape, device=device_of(model))
    try:
        with torch.no_grad():
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as err:
        if is_view_across_channels(err):
            return False
        raise
    return True
