"""The Optuna study: storage, samplers, starting points, and the loop that tries networks."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prune2deploy import progress
from prune2deploy.data.order import seed_from
from prune2deploy.errors import SearchError, require
from prune2deploy.search.front import pareto
from prune2deploy.search.space import SHARE, Counts, Space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

Sampler = Literal["tpe", "nsga2", "random"]

_POPULATION = 24
_IN_VAIN = 40
"""Proposals in a row that bring no new network, before the space counts as exhausted."""
_MOVES = 50
_COUNTS = "counts"
_START = "start"


@dataclass(frozen=True)
class Settings:
    """Of one search.

    storage: a URL of a data base (sqlite:///FILE, …), or the path of a journal file.
    study: its name there; it should change with everything that changes what comes of a network.
    trials: networks that are tried in all, those of other processes and earlier runs included.
    shared: other processes may be at work in the storage; else whatever is unfinished there was
    left by a process that ended.
    """

    storage: str
    study: str
    trials: int
    sampler: Sampler
    seed: int
    shared: bool = True


@dataclass(frozen=True)
class Trial:
    """A network that was tried. gain: higher is better. start: the starting point it is, if any."""

    number: int
    counts: tuple[int, ...]
    gain: float
    cost: float
    start: str | None = None


@dataclass(frozen=True)
class Result:
    """gain: higher is better. cost: lower is."""

    gain: float
    cost: float


Evaluate = Callable[[Counts], Result]


def open_study(settings: Settings, *, create: bool = True) -> optuna.Study | None:
    """Open the study, or make it.

    Returns:
        None: there is none, and it was not to be made.

    Raises:
        MissingDependencyError: Optuna is not installed.
        SearchError: the storage cannot be used.
    """
    package = require("optuna", "search")
    package.logging.set_verbosity(package.logging.WARNING)
    try:
        storage = _storage(settings.storage, create, settings.shared)
        if storage is None:
            return None
        if not create and settings.study not in package.get_all_study_names(storage):
            return None
        study: optuna.Study = package.create_study(
            storage=storage,
            study_name=settings.study,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    except Exception as err:  # of SQLAlchemy, of drivers, of the file system
        if isinstance(err, SearchError):
            raise
        raise SearchError(
            f"prune.search.storage: {settings.storage} cannot be used ({type(err).__name__}: "
            f"{str(err).splitlines()[0] if str(err) else 'no reason given'}). Expected a URL such "
            "as sqlite:///search.db, or the path of a journal file in a folder that exists."
        ) from err
    return study


def _storage(name: str, create: bool, shared: bool) -> Any:
    optuna = require("optuna", "search")
    if "://" in name:
        file = name.removeprefix("sqlite:///")
        if not create and file != name and not Path(file).is_file():
            return None
        # Several processes write: one waits for another instead of giving up.
        options = {"connect_args": {"timeout": 60}} if name.startswith("sqlite:") else {}
        return optuna.storages.RDBStorage(name, engine_kwargs=options)
    if not create and not Path(name).is_file():
        return None
    if not shared:
        _mend(Path(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(name))


def _mend(journal: Path) -> None:
    """Take away what a process that was killed while it wrote may have left: a lock, half a line.

    Only for a journal that no other process writes.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.is_file():
        with journal.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def trials_of(study: optuna.Study) -> list[Trial]:
    """The networks that were tried, each once, in order."""
    optuna = require("optuna", "search")
    found: dict[tuple[int, ...], Trial] = {}
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    for one in complete:
        counts = tuple(one.user_attrs[_COUNTS])
        gain, cost = one.values
        trial = Trial(one.number, counts, gain, cost, one.user_attrs.get(_START))
        if counts not in found or (trial.start and not found[counts].start):
            found[counts] = trial
    return sorted(found.values(), key=lambda one: one.number)


def run(
    space: Space,
    evaluate: Evaluate,
    starts: Mapping[str, Counts],
    settings: Settings,
    shown: Callable[[Sequence[Trial]], str] = lambda tried: "",
) -> list[Trial]:
    """Try networks until there are enough, going on from what the storage has.

    Args:
        evaluate: tries one network; not called for one that is known.
        starts: networks that are tried first, by their names; all of them in any case.
        shown: what the progress bar says of those tried.

    Returns:
        All networks tried, by whomever.

    Raises:
        SearchError: the storage cannot be used, or nothing could be tried.
    """
    study = open_study(settings)
    assert study is not None
    search = _Search(study, space, evaluate, starts, settings)
    search.begin()
    tried = trials_of(study)
    if tried:
        log.info("The storage has %d networks of this search", len(tried))
    with progress.task("Searching", settings.trials) as bar:
        bar.advance(len(tried), shown(tried) if tried else None)
        while len(tried) < settings.trials and search.step():
            before, tried = len(tried), trials_of(study)
            bar.advance(len(tried) - before, shown(tried))
        search.finish_starts()
    tried = trials_of(study)
    if not tried:
        raise SearchError(
            f"No network costs between {space.low:.1%} and {space.high:.1%} of the original with "
            "the widths that are allowed. Change prune.search.shares, or lower prune.round_to or "
            "prune.min_channels."
        )
    return tried


class _Search:
    """One process at work in a study."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        evaluate: Evaluate,
        starts: Mapping[str, Counts],
        settings: Settings,
    ) -> None:
        self._optuna = require("optuna", "search")
        self._study = study
        self._space = space
        self._evaluate = evaluate
        self._starts = {tuple(counts.tolist()): name for name, counts in starts.items()}
        self._settings = settings
        self._distributions = {
            name: self._optuna.distributions.FloatDistribution(
                *((space.low, space.high) if name == SHARE else (0.0, 1.0))
            )
            for name in space.parameters()
        }
        self._in_vain = 0
        study.sampler = _seeded_sampler(settings)

    def begin(self) -> None:
        """Put the starting points that nobody has begun first in the queue."""
        state = self._optuna.trial.TrialState
        if not self._settings.shared:
            for one in self._study.get_trials(deepcopy=False, states=(state.RUNNING,)):
                self._study.tell(one.number, state=state.FAIL)
        begun = [state.COMPLETE, state.RUNNING, state.WAITING]
        known = {
            tuple(one.user_attrs.get(_COUNTS, ()))
            for one in self._study.get_trials(deepcopy=False, states=begun)
        }
        for counts in self._starts:
            if counts not in known:
                self._enqueue(counts)

    def step(self) -> bool:
        """Take the next proposal, and try it if it is new.

        Returns:
            False: nothing new has been proposed for so long that there is no hope.
        """
        trial = self._study.ask(self._distributions)
        counts = tuple(self._space.counts_of(trial.params).tolist())
        known = self._known(trial.number)
        reason = None
        if counts in known:
            reason = "known"
        elif not self._space.holds(np.array(counts)) and counts not in self._starts:
            reason = "its cost is out of range"
        if reason is not None:
            trial.set_user_attr("not tried", reason)
            self._fail(trial)
            self._in_vain += 1
            self._propose_another(known, trial.number)
            return self._in_vain < _IN_VAIN
        self._in_vain = 0
        self._try(trial, counts)
        return True

    def finish_starts(self) -> None:
        """Try those starting points that a process began with and did not come back from."""
        for counts, name in self._starts.items():
            if counts in {one.counts for one in trials_of(self._study)}:
                continue
            found = self._evaluate(np.array(counts))
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params=self._space.numbers_of(np.array(counts)),
                    distributions=self._distributions,
                    values=[found.gain, found.cost],
                    user_attrs={_COUNTS: list(counts), _START: name},
                )
            )

    def _try(self, trial: optuna.Trial, counts: tuple[int, ...]) -> None:
        trial.set_user_attr(_COUNTS, list(counts))
        if counts in self._starts:
            trial.set_user_attr(_START, self._starts[counts])
        try:
            found = self._evaluate(np.array(counts))
        except BaseException:
            self._fail(trial)
            raise
        if not (math.isfinite(found.gain) and math.isfinite(found.cost)):
            log.warning("A network has no figures (%s, %s)", found.gain, found.cost)
            trial.set_user_attr("not tried", "it has no figures")
            self._fail(trial)
            return
        self._study.tell(trial, [found.gain, found.cost])

    def _known(self, number: int) -> set[tuple[int, ...]]:
        """Networks that were tried, or are being tried in another trial than this one."""
        state = self._optuna.trial.TrialState
        trials = self._study.get_trials(deepcopy=False)
        return {
            tuple(one.user_attrs[_COUNTS])
            for one in trials
            if _COUNTS in one.user_attrs
            and one.number != number
            and (one.state in (state.COMPLETE, state.RUNNING) or "not tried" in one.user_attrs)
        }

    def _propose_another(self, known: set[tuple[int, ...]], number: int) -> None:
        """Instead of what is known already, a neighbour of the front, or else of anything tried."""
        tried = trials_of(self._study)
        front = pareto(tried, lambda t: t.gain, lambda t: t.cost)
        if not front or not self._space.free:
            return
        random = np.random.default_rng(seed_from(self._settings.seed, "neighbour", number))
        for some in (front, tried):
            for _ in range(_MOVES):
                base = some[int(random.integers(len(some)))]
                moved = self._space.neighbour(np.array(base.counts), random)
                if tuple(moved.tolist()) not in known and self._space.holds(moved):
                    self._enqueue(tuple(moved.tolist()))
                    return

    def _enqueue(self, counts: tuple[int, ...]) -> None:
        self._study.enqueue_trial(
            self._space.numbers_of(np.array(counts)), user_attrs={_COUNTS: list(counts)}
        )

    def _fail(self, trial: optuna.Trial) -> None:
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)


def _seeded_sampler(settings: Settings) -> optuna.samplers.BaseSampler:
    """A sampler whose draws for a trial depend on the seed, the trial's number and the history.

    So a search that was stopped and goes on draws what it would have drawn, and processes that
    share a storage do not draw the same.
    """
    samplers = require("optuna", "search").samplers
    make: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
        "tpe": lambda seed: samplers.TPESampler(seed=seed, constant_liar=True),
        "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed, population_size=_POPULATION),
        "random": lambda seed: samplers.RandomSampler(seed=seed),
    }

    class Seeded(samplers.BaseSampler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._inner = make[settings.sampler](settings.seed % 2**32)

        def before_trial(self, study: Any, trial: Any) -> None:
            seed = seed_from(settings.seed, "trial", trial.number) % 2**32
            self._inner = make[settings.sampler](seed)
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._inner.sample_relative(study, trial, search_space)

        def sample_independent(self, *args: Any) -> Any:
            return self._inner.sample_independent(*args)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._inner.after_trial(study, trial, state, values)

        def reseed_rng(self) -> None:
            pass

    return Seeded()
