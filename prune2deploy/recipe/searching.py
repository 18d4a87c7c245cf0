"""The section `prune.search`: widths that are searched for instead of following from scores."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from prune2deploy.recipe.fields import Section
from prune2deploy.yaml_text import Key

Objective = Literal["accuracy", "macs", "params", "latency"]
SearchCost = Literal["macs", "params", "latency"]

_Part = Annotated[float, Field(gt=0, le=1)]
_WIDE = (0.1, 1.0)


class SearchSection(Section):
    """Try networks out, and keep the front of accuracy and cost."""

    trials: int = Field(
        default=200,
        ge=1,
        description="Networks that are tried in all, those of earlier runs and of other processes "
        "in the same storage included.",
    )
    objectives: tuple[Objective, Objective] = Field(
        default=("accuracy", "macs"),
        description="accuracy (the task's metric before any training), and one cost: macs, params "
        "or latency.",
    )
    on: str = Field(
        default="local",
        min_length=1,
        description="Device that a latency is of, a name of devices.yaml.",
    )
    measure: bool = Field(
        default=False,
        description="Measure every network whole on the device; otherwise its time is the sum of "
        "what its layers take, from the table of the device.",
    )
    sampler: Literal["tpe", "nsga2", "random"] = Field(
        default="tpe",
        description="Who proposes networks: tpe learns most from few trials, nsga2 is evolution, "
        "random draws candidates as EagleEye does.",
    )
    shares: tuple[_Part, _Part] | None = Field(
        default=None,
        description="Smallest and largest share of the cost (of the macs, for latency) that is "
        "tried; left out: from half of prune.budget to all of it, without such a budget 0.1 to 1.",
    )
    images: int = Field(
        default=2000,
        ge=1,
        description="Images that each network is judged on, of the validation set; of the "
        "training set where there is none.",
    )
    recalibrate: int = Field(
        default=10,
        ge=0,
        description="Training batches that renew each network's batch-norm statistics.",
    )
    storage: str | None = Field(
        default=None,
        description="Where trials are kept, for processes that share them: a data base such as "
        "sqlite:///search.db, or the path of a journal file; left out: in the run's folder.",
    )
    point: int | None = Field(
        default=None,
        ge=1,
        description="Number of the front's point to finish, from a search that was done before; "
        "nothing is searched again. On the command line: --point N.",
    )

    @property
    def cost(self) -> SearchCost:
        """The objective beside accuracy."""
        first, second = self.objectives
        found = second if first == "accuracy" else first
        assert found in get_args(SearchCost)
        return found  # type: ignore[return-value]

    def misfits(self) -> list[tuple[Key, str]]:
        """Objectives, and what belongs to latency only."""
        if (self.objectives[0] == "accuracy") == (self.objectives[1] == "accuracy"):
            found = " and ".join(self.objectives)
            text = f"should be accuracy and one of macs, params and latency, found {found}"
            return [(("objectives",), text)]
        problems: list[tuple[Key, str]] = []
        if self.cost != "latency":
            fields = type(self).model_fields
            problems += [
                ((key,), "is for the objective latency; remove it, or ask for latency")
                for key in ("on", "measure")
                if getattr(self, key) != fields[key].default
            ]
        if self.shares is not None and self.shares[0] >= self.shares[1]:
            low, high = self.shares
            text = f"should be a smaller and a larger share, found {low:g} and {high:g}"
            problems.append((("shares",), text))
        return problems

    def bounds(self, budget: float | None) -> tuple[float, float]:
        """Shares of the cost between which networks are tried.

        budget: the share of it that the recipe's budget keeps; None: it has none in this unit.
        """
        if self.shares is not None:
            return self.shares
        return _WIDE if budget is None else (budget / 2, budget)
