"""What can be done beside other work and what must be alone, and who waits for whom."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from prune2deploy.pipeline.depends import stages_of
from prune2deploy.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """Stages of a run that are done at one go. measures: whether latency is measured in them."""

    stages: tuple[str, ...]
    measures: bool

    @property
    def until(self) -> str:
        """Its last stage."""
        return self.stages[-1]


def parts_of(recipe: Recipe) -> list[Part]:
    """Split a run where latency begins or ends to be measured: nothing may train meanwhile."""
    measuring = {"profile", "report", *(["prune"] if recipe.prune.budget.timed else [])}
    runs = itertools.groupby(stages_of(recipe), key=lambda stage: stage in measuring)
    return [Part(tuple(stages), measures) for measures, stages in runs]


@dataclass(frozen=True)
class AtWork:
    """A part that a worker has. keys: per stage, of `shared_keys`. began: stages, so far."""

    stages: Sequence[str]
    keys: Mapping[str, str]
    began: Sequence[str] = ()

    @property
    def to_come(self) -> Set[str]:
        """Keys of the stages that it has not finished."""
        done = self.began[:-1]
        return {self.keys[stage] for stage in self.stages if stage not in done}


def must_wait(stages: Sequence[str], keys: Mapping[str, str], others: Sequence[AtWork]) -> bool:
    """Whether somebody at work is about to finish a stage that these stages could take."""
    to_come = {key for other in others for key in other.to_come}
    return any(keys[stage] in to_come for stage in stages)
