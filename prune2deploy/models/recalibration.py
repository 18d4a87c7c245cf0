"""Give the batch norms of a model the statistics of what goes through them now."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy import progress
from prune2deploy.errors import DataError
from prune2deploy.models.forward import evaluating

logger = logging.getLogger(__name__)


def recalibrate(model: nn.Module, images: Iterable[Tensor], batches: int) -> int:
    """Measure the statistics of all batch norms anew, in place; weights do not change.

    Paper: Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
    Pruning", ECCV 2020, https://arxiv.org/abs/2007.02491: after a cut the old
    statistics no longer fit. Differs from the paper: batches are averaged with equal
    weights, which needs fewer of them than the moving average, and everything but the
    batch norms stays in eval mode (no dropout).

    Args:
        model: in any mode, on any device; flags and momentum are left as they were.
        images: batches of training images, of equal size, because they count equally.
            A batch of one image is passed over: it has no deviation.
        batches: how many at most, at least 1.

    Returns:
        The number of batches used; 0 for a model without batch norms.

    Raises:
        DataError: there was no batch of two images or more. The statistics are then as
            they were.
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
        with evaluating(model):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                # Means "the plain average of all batches" to PyTorch.
                norm.momentum = None
            used = _run(model, images, batches)
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
            "Batch-norm statistics need batches of at least 2 images, and there were none. "
            "Raise the batch size (in a recipe data.batch_size), or add training images."
        )
    logger.info("Measured %d batch norms anew on %d batches", len(norms), used)
    return used


def _run(model: nn.Module, images: Iterable[Tensor], batches: int) -> int:
    device = next(model.buffers()).device
    used = 0
    with progress.task("Recalibrating batch norms", total=batches) as shown:
        for batch in images:
            if used == batches:
                break
            if len(batch) < 2:
                continue
            model(batch.to(device))
            used += 1
            shown.advance()
    return used
