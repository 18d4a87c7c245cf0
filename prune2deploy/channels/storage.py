"""A pruned model on disk, without pickle: its weights, and beside them its plan.

The code of the model stays where it was; the model is rebuilt from its source, cut by
the plan, and filled with the weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from prune2deploy.channels.cut import cut
from prune2deploy.channels.plan import Plan
from prune2deploy.errors import ModelError


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers as safetensors, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    save_model(model, str(temporary))
    # safetensors lets nobody but the owner read its files; the other files of a run are readable.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    os.replace(temporary, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with the parameters and buffers that `save_weights` wrote.

    Raises:
        ModelError: the file is missing or damaged, or of another model.
    """
    try:
        load_model(model, str(path))
    except (OSError, SafetensorError, RuntimeError) as err:
        raise ModelError(
            f"The weights in {path} do not fit the model: {err}. They must come from a run whose "
            "model is built in the same way."
        ) from err


def save_pruned(model: nn.Module, plan: Plan, weights: Path, plan_file: Path) -> None:
    """Write a cut model's weights (safetensors) and the plan that made it (JSON)."""
    save_weights(model, weights)
    temporary = plan_file.with_name(plan_file.name + ".tmp")
    temporary.write_text(plan.to_json(), encoding="utf-8")
    os.replace(temporary, plan_file)


def load_pruned(original: nn.Module, weights: Path, plan_file: Path) -> nn.Module:
    """Rebuild a pruned model from the original's source.

    Args:
        original: a model built as the pruned one's original was; its weights do not
            matter. It is left alone.

    Raises:
        ModelError: a file is missing or damaged, or they belong to another model.
    """
    try:
        plan = Plan.from_json(plan_file.read_text(encoding="utf-8"))
        small = cut(original, plan)
        load_model(small, str(weights))
    except (OSError, UnicodeDecodeError, SafetensorError, RuntimeError) as err:
        raise ModelError(
            f"Could not rebuild the pruned model from {weights.name} and {plan_file.name}: {err}. "
            "Both must come from one run, and the model from that run's source."
        ) from err
    return small
