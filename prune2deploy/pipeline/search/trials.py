"""The search stage: networks of other widths are tried, and their front is kept; a point of it."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from prune2deploy import progress
from prune2deploy.budget import allowed_counts, best
from prune2deploy.budget.widths import Scores
from prune2deploy.channels import Graph, Plan, cut, trace
from prune2deploy.data import SplitName
from prune2deploy.errors import MethodError, ModelError, SearchError
from prune2deploy.methods.base import Counts
from prune2deploy.models import recalibrate
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.inputs import Inputs
from prune2deploy.pipeline.pruning import (
    NOWHERE,
    Checkpoints,
    context_of,
    round_to_of,
    train_with_hooks,
)
from prune2deploy.pipeline.search.costs import Cost, open_cost
from prune2deploy.pipeline.search.starts import starting_points
from prune2deploy.planning.plan import channel_scores, make_method
from prune2deploy.planning.timed.budget import widths_worth_having
from prune2deploy.recipe import Recipe, SearchSection
from prune2deploy.search import (
    FrontPoint,
    Result,
    SearchRecord,
    Settings,
    Space,
    Trial,
    Tried,
    open_study,
    pareto,
    run,
    trials_of,
)
from prune2deploy.train import evaluate
from prune2deploy.train.evaluation import Batches

log = logging.getLogger(__name__)

_ABOUT = "about"
_MEMORY = 512 << 20


@dataclass(frozen=True)
class Ranked:
    """What a search starts from.

    graph: of the network whose channels go, after prune.train. scores: per group; None: it stays
    whole.
    """

    graph: Graph
    scores: list[Scores | None]

    def plan(self, widths: Mapping[str, int], notes: Sequence[str] = ()) -> Plan:
        """Keep the best channels of each group.

        Raises:
            SearchError: the widths are of another network.
        """
        groups = self.graph.groups
        wrong = [g.name for g in groups if not 0 < widths.get(g.name, 0) <= g.size]
        if wrong or len(widths) != len(groups):
            raise SearchError(
                f"The search was of another network: its groups are {len(widths)}, the model has "
                f"{len(groups)}{f'; different is {wrong[0]}' if wrong else ''}. Search again "
                "with --from search."
            )
        return self.graph.plan(self._kept([widths[g.name] for g in groups]), notes)

    def network(self, counts: Counts) -> nn.Module:
        """Cut the network."""
        return cut(self.graph.model, self.graph.plan(self._kept(counts.tolist())))

    def _kept(self, counts: Sequence[int]) -> list[np.typing.NDArray[np.int64]]:
        pairs = zip(self.scores, counts, strict=True)
        return [np.arange(count) if s is None else best(s, count) for s, count in pairs]


def rank(
    recipe: Recipe, inputs: Inputs, model: nn.Module, checkpoints: Checkpoints = NOWHERE
) -> Ranked:
    """Train for the method if the recipe says so, and score the channels."""
    section = recipe.prune
    method = make_method(section.method, section.options)
    if method.removes_blocks:
        raise MethodError(
            f"{method.name} removes whole blocks here, and a search is about the widths of layers. "
            "Write structure: channel, or a budget of macs or params without a search."
        )
    teacher = model
    if section.train is not None:
        model = copy.deepcopy(model)
    graph = trace(model, inputs.example, section.exclude)
    if not graph.groups:
        raise ModelError(
            "There is nothing to search: no channels of the model can be removed. "
            "'prune2deploy inspect' shows why."
        )
    if section.train is not None:
        train_with_hooks(recipe, inputs, model, teacher, method, graph, checkpoints)
        graph = trace(model, inputs.example, section.exclude)
    return Ranked(
        graph, channel_scores(context_of(recipe, inputs, graph), method, section.normalize)
    )


def search(
    recipe: Recipe, inputs: Inputs, ranked: Ranked, folder: Path, earlier: Sequence[Path] = ()
) -> SearchRecord:
    """Try networks, or go on, and return the front of all that were tried.

    Args:
        folder: of the run, where trials are kept unless the recipe names a storage.
        earlier: folders of other runs, whose trials count where they are of the same search.

    Raises:
        SearchError: the recipe asks for a point of an earlier search, and there is none.
        MissingDependencyError: Optuna is not installed.
    """
    section = recipe.prune.search
    assert section is not None
    settings = Settings(
        storage=section.storage or str(folder / files.JOURNAL),
        study=f"{recipe.name} {identity(recipe, inputs, ranked)[:16]}",
        trials=section.trials,
        sampler=section.sampler,
        seed=recipe.seed,
        shared=section.storage is not None,
    )
    if section.storage is None:
        _take_over(settings, earlier)
    if section.point is not None:
        return _found(settings, section.point, ranked, earlier)
    judge = Judge(recipe, inputs, section)
    with open_cost(recipe, inputs, ranked.graph) as cost:
        study = open_study(settings)
        assert study is not None
        if _ABOUT not in study.user_attrs:
            study.set_user_attr(_ABOUT, _about(recipe, inputs, settings, judge, ranked, cost))
        whole = _original(study)
        space = _space(recipe, ranked, cost)
        starts = starting_points(space, ranked.scores, cost, _budget(recipe, cost))
        tried = run(
            space,
            lambda counts: _tried(judge, cost, ranked, counts),
            starts,
            settings,
            lambda found: _best_so_far(found, whole, judge.sign),
        )
    return _record(study.user_attrs[_ABOUT], tried, ranked)


def identity(recipe: Recipe, inputs: Inputs, ranked: Ranked) -> str:
    """Changes with everything that changes what comes of a network that is tried."""
    section = recipe.prune
    assert section.search is not None
    keys = {"objectives", "on", "measure", "images", "recalibrate"}
    facts = inputs.data.describe()
    told = [
        section.search.model_dump(mode="json", include=keys),
        section.model_dump(
            mode="json",
            include={"method", "options", "normalize", "exclude", "round_to", "min_channels"},
        ),
        [facts.get("fingerprint"), facts["images"], recipe.seed, recipe.data.batch_size],
        [recipe.task, recipe.model.source, recipe.model.input],
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(ranked.graph.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Judge:
    """How good a network is, its batch-norm statistics measured anew, without any training."""

    def __init__(self, recipe: Recipe, inputs: Inputs, section: SearchSection) -> None:
        self.task = inputs.task
        self.sign = 1 if inputs.task.higher_is_better else -1
        data, size = inputs.data, recipe.data.batch_size
        self.split: SplitName = "val" if data.size("val") else "train"
        self.count = min(section.images, data.size(self.split))
        # Other training images than those of the statistics, as far as there are so many.
        self._images = in_memory(
            data.loader(
                self.split, batch_size=size, shuffle=True, seed=recipe.seed + 2, limit=self.count
            )
        )
        self._batches = section.recalibrate
        self._statistics: Batches = []
        if self._batches:
            self._statistics = in_memory(
                data.loader(
                    "train",
                    batch_size=size,
                    shuffle=True,
                    seed=recipe.seed + 1,
                    limit=size * self._batches,
                    drop_last=data.size("train") >= size,
                )
            )

    def metric(self, model: nn.Module) -> float:
        """The task's metric. The model's batch norms are changed."""
        with progress.hidden():
            if self._batches:
                recalibrate(model, (images for images, _ in self._statistics), self._batches)
            return evaluate(model.eval(), self.task, self._images)[self.task.metric]


def in_memory(batches: Batches) -> Batches:
    """Keep what a loader yields, unless it is much: every network is judged on the same."""
    kept: list[tuple[Tensor, Any]] = []
    seen = 0
    for images, targets in batches:
        seen += images.nbytes
        if seen > _MEMORY:
            return batches
        kept.append((images, targets))
    return kept


def _take_over(settings: Settings, earlier: Sequence[Path]) -> None:
    """Begin with the trials of an earlier run, where it searched for the same."""
    here = Path(settings.storage)
    if here.exists():
        return
    for folder in earlier:
        journal = folder / files.JOURNAL
        theirs = replace(settings, storage=str(journal), shared=True)
        if journal.is_file() and open_study(theirs, create=False) is not None:
            here.parent.mkdir(parents=True, exist_ok=True)
            temporary = here.with_name(here.name + ".tmp")
            shutil.copyfile(journal, temporary)
            temporary.replace(here)
            log.info("The trials of the search in %s are taken over", folder)
            return


def _found(settings: Settings, point: int, ranked: Ranked, earlier: Sequence[Path]) -> SearchRecord:
    """The front of what the storage has; nothing is tried."""
    study = open_study(settings, create=False)
    tried = [] if study is None else trials_of(study)
    if study is None or not tried:
        looked = [settings.storage] if settings.shared else [str(f) for f in earlier]
        raise SearchError(
            f"--point {point} finishes a point of a search that was done before, and there is none "
            f"of this recipe, model and data; looked in {', '.join(looked) or 'no other run'}. Run "
            "the recipe without --point first; what decides about a network (method, round_to, "
            "seed, …) must be the same."
        )
    with progress.task("Nothing is searched: reading the front") as shown:
        shown.advance(info=f"of {len(tried)} networks tried before")
    return _record(study.user_attrs[_ABOUT], tried, ranked)


def _about(
    recipe: Recipe, inputs: Inputs, settings: Settings, judge: Judge, ranked: Ranked, cost: Cost
) -> dict[str, Any]:
    """All of the record but what is tried; it is kept in the study for those who read it."""
    full = ranked.graph.full
    found = _tried(judge, cost, ranked, full)
    return {
        "study": settings.study,
        "method": recipe.prune.method,
        "sampler": settings.sampler,
        "metric": inputs.task.metric,
        "higher_is_better": inputs.task.higher_is_better,
        "judged_on": judge.split,
        "images": judge.count,
        "cost": cost.name.model_dump(),
        "original": {"trial": -1, "accuracy": judge.sign * found.gain, "cost": found.cost},
    }


def _original(study: Any) -> Tried:
    return Tried.model_validate(study.user_attrs[_ABOUT]["original"])


def _space(recipe: Recipe, ranked: Ranked, cost: Cost) -> Space:
    section, graph = recipe.prune, ranked.graph
    assert section.search is not None
    if section.round_to == "auto" and cost.step:
        counts = widths_worth_having(graph, cost.step)
    else:
        step = round_to_of(recipe)[0]
        counts = [graph.width_steps(n, step) for n in range(len(graph.groups))]
    allowed = [
        allowed_counts(some, section.min_channels)[: 1 if s is None else None]
        for some, s in zip(counts, ranked.scores, strict=True)
    ]
    low, high = section.search.bounds(_budget(recipe, cost))
    return Space([group.name for group in graph.groups], allowed, cost.size, low, high)


def _budget(recipe: Recipe, cost: Cost) -> float | None:
    """The share of what the space goes by that the recipe's budget keeps."""
    share = getattr(recipe.prune.budget, cost.size_name)
    return None if share is None else float(share)


def _tried(judge: Judge, cost: Cost, ranked: Ranked, counts: Counts) -> Result:
    network = ranked.network(counts)
    spent = cost.of(counts, network)
    return Result(judge.sign * judge.metric(network), spent)


def _best_so_far(tried: Sequence[Trial], original: Tried, sign: int) -> str:
    """What the progress bar says: how many lie on the front, and the best at half the cost."""
    front = pareto(tried, lambda t: t.gain, lambda t: t.cost)
    half = [one for one in front if one.cost <= original.cost / 2]
    one = half[-1] if half else front[0]
    share = one.cost / original.cost
    return f"front of {len(front)}, {sign * one.gain:.4g} at {share:.0%} of the cost"


def _record(about: Mapping[str, Any], tried: Sequence[Trial], ranked: Ranked) -> SearchRecord:
    graph = ranked.graph
    sign = 1 if about["higher_is_better"] else -1
    front = []
    for number, one in enumerate(pareto(tried, lambda t: t.gain, lambda t: t.cost), 1):
        counts = np.array(one.counts, dtype=np.int64)
        front.append(
            FrontPoint(
                number=number,
                trial=one.number,
                accuracy=sign * one.gain,
                cost=one.cost,
                macs=graph.cost.macs(counts),
                params=graph.cost.params(counts),
                widths=dict(zip([g.name for g in graph.groups], one.counts, strict=True)),
                start=one.start,
            )
        )
    every = [
        Tried(trial=one.number, accuracy=sign * one.gain, cost=one.cost, start=one.start)
        for one in tried
    ]
    return SearchRecord.model_validate({**about, "front": front, "tried": every})
