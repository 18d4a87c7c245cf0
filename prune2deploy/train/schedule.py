"""The learning rate at each step."""

from __future__ import annotations

import math

from prune2deploy.train.settings import TrainSettings


def learning_rate(step: int, total_steps: int, warmup_steps: int, settings: TrainSettings) -> float:
    """Return the rate for one step.

    Args:
        step: from 0.
        total_steps: of the whole run.
        warmup_steps: the rate rises in a straight line and reaches `settings.lr` in the
            last of them.
        settings: gives the highest rate and how it falls afterwards.
    """
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    if settings.schedule == "cosine":
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "step":
        passed = sum(step >= milestone * total_steps for milestone in settings.milestones)
        return settings.lr * settings.gamma**passed
    return settings.lr
