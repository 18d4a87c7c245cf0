"""The Pareto front of what was tried, its record search.json, and which of its points is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prune2deploy.errors import SearchError

SCHEMA_VERSION = 1

_Any = TypeVar("_Any")
_LISTED = 12


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FrontPoint(_Record):
    """One network of the front: no other that was tried is as good and costs as little."""

    number: int = Field(description="From 1, ascending in cost; what --point takes.")
    trial: int = Field(description="Number of its trial in the study.")
    accuracy: float = Field(description="The task's metric before any training.")
    cost: float = Field(description="In the unit of `cost`.")
    macs: int = Field(description="Multiply-accumulates.")
    params: int = Field(description="Parameters.")
    widths: dict[str, int] = Field(description="Channels kept, by group.")
    start: str | None = Field(
        default=None, description="Which of the starting points it is; null: it was searched for."
    )


class Tried(_Record):
    """One network that was tried."""

    trial: int = Field(description="Number of its trial in the study.")
    accuracy: float = Field(description="The task's metric before any training.")
    cost: float = Field(description="In the unit of `cost`.")
    start: str | None = Field(default=None, description="Which of the starting points it is.")


class CostName(_Record):
    """What was made small beside the loss of accuracy."""

    name: Literal["macs", "params", "latency"] = Field(description="The objective.")
    unit: str = Field(description="MACs, parameters or ms.")
    device: str | None = Field(default=None, description="Whose time it is.")
    measured: bool = Field(
        default=False,
        description="Whether every network was measured whole; else times are sums over layers.",
    )


class SearchRecord(_Record):
    """search.json: what a search tried, and its front."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Of this document.")
    study: str = Field(description="Name of the study in its storage.")
    method: str = Field(description="Whose scores rank the channels of a group.")
    sampler: str = Field(description="Who proposed networks.")
    metric: str = Field(description="The task's metric.")
    higher_is_better: bool = Field(description="Its direction.")
    judged_on: Literal["val", "train"] = Field(description="Whose images networks were judged on.")
    images: int = Field(description="How many of them.")
    cost: CostName = Field(description="The second objective.")
    original: Tried = Field(description="The whole network, judged in the same way; trial -1.")
    front: list[FrontPoint] = Field(description="Ascending in cost.")
    tried: list[Tried] = Field(description="All networks, in the order of their trials.")

    def point(self, number: int) -> FrontPoint:
        """The point of this number.

        Raises:
            SearchError: there is none; the message lists those that there are.
        """
        for one in self.front:
            if one.number == number:
                return one
        shown = "; ".join(self.told(one) for one in self.front[:_LISTED])
        more = f"; and {len(self.front) - _LISTED} more" if len(self.front) > _LISTED else ""
        raise SearchError(
            f"--point {number}: the front of this search has the points 1 to {len(self.front)}: "
            f"{shown}{more}."
        )

    def told(self, one: FrontPoint) -> str:
        """One point in words."""
        return f"{one.number} ({self.metric} {one.accuracy:.2f}, {self.amount(one.cost)})"

    def amount(self, cost: float) -> str:
        """A cost with its unit, and the share of the original's."""
        share = cost / self.original.cost
        if self.cost.unit == "ms":
            return f"{cost:.4g} ms, {share:.1%}"
        return f"{cost:,.0f} {self.cost.unit}, {share:.1%}"


def read_record(path: Path) -> SearchRecord:
    """Read search.json.

    Raises:
        SearchError: it is missing, or is no such document.
    """
    try:
        return SearchRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as err:
        raise SearchError(f"There is no {path}: no search was finished there.") from err
    except ValidationError as err:
        raise SearchError(
            f"{path} cannot be read as the record of a search: {err.errors()[0]['msg']}. "
            "Run the search again with --from search."
        ) from err


def pareto(
    tried: Sequence[_Any], gain: Callable[[_Any], float], cost: Callable[[_Any], float]
) -> list[_Any]:
    """Those that no other beats, ascending in cost; of equals the one that comes first."""
    front: list[_Any] = []
    best = -np.inf
    for one in sorted(tried, key=lambda one: (cost(one), -gain(one))):
        if gain(one) > best:
            front.append(one)
            best = gain(one)
    return front


def knee(front: Sequence[FrontPoint], higher_is_better: bool) -> FrontPoint:
    """The point that is farthest above the line from the cheapest to the best one.

    Both axes run from 0 to 1 over the front. Of two points or one, the best.
    """
    if len(front) < 3:
        return front[-1]
    costs = np.array([one.cost for one in front])
    gains = np.array([one.accuracy for one in front]) * (1 if higher_is_better else -1)
    above = (gains - gains[0]) / np.ptp(gains) - (costs - costs[0]) / np.ptp(costs)
    return front[int(above.argmax())]


def best_within(
    front: Sequence[FrontPoint], holds: Callable[[FrontPoint], bool], asked: str
) -> FrontPoint:
    """The point with the best accuracy of those that hold a budget.

    Args:
        front: ascending in cost, and so in accuracy.
        asked: the budget in words, for the message.

    Raises:
        SearchError: none holds it.
    """
    holding = [one for one in front if holds(one)]
    if not holding:
        raise SearchError(
            f"None of the {len(front)} points of the front holds the budget {asked}. Allow more, "
            "let the search look at smaller networks (prune.search.shares), or give it more trials."
        )
    return holding[-1]
