"""Errors that the user can mend. Anything else is our bug and keeps its traceback."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection
from types import ModuleType


class Prune2DeployError(Exception):
    """Says what was found, what was expected and what to do; printed without a traceback."""


class RecipeError(Prune2DeployError):
    """The recipe, or a file it names, cannot be used as written."""


class ModelError(Prune2DeployError):
    """The model cannot be built, loaded, traced or run."""


class DataError(Prune2DeployError):
    """The data cannot be read, or does not fit the model."""


class MethodError(Prune2DeployError):
    """A pruning method was given something it cannot score."""


class BudgetError(Prune2DeployError):
    """The budget cannot be reached with the channels that may be cut."""


class SearchError(Prune2DeployError):
    """A search for widths cannot go on, or has no such point."""


class TrainingError(Prune2DeployError):
    """Training cannot go on, for example because the loss is no longer finite."""


class ExportError(Prune2DeployError):
    """The exported file is missing, invalid, or does not agree with the model."""


class DeviceError(Prune2DeployError):
    """A device or its runtime cannot do what was asked.

    kind: the probe's word for what went wrong, such as no_gpu; None: it did not say.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class MissingDependencyError(Prune2DeployError):
    """An optional package is needed and not installed."""


def nearest_name_hint(name: str, known: Collection[str]) -> str:
    """Return "Did you mean 'x'?" for a near miss, else the list of known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(sorted(known))}."


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingDependencyError: it cannot be imported; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise MissingDependencyError(
            f"This step needs the package '{module}', which could not be imported ({err}). "
            f"Install it with: pip install 'prune2deploy[{extra}]'"
        ) from err
