"""`run`: the stages in order, each only if it has to be, and the folder they leave."""

from __future__ import annotations

import functools
import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from prune2deploy import __version__
from prune2deploy.data.order import seed_from
from prune2deploy.errors import RecipeError, nearest_name_hint
from prune2deploy.pipeline import folder as files
from prune2deploy.pipeline.depends import KINDS, depends_of, stages_of
from prune2deploy.pipeline.deploy import devices_for, measure_rest_command
from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.inputs import open_inputs
from prune2deploy.pipeline.job import Job
from prune2deploy.pipeline.processes import (
    is_follower,
    started_from_outside,
    trains,
    wait_for,
)
from prune2deploy.pipeline.pruning import Checkpoints
from prune2deploy.pipeline.reporting import write_report
from prune2deploy.pipeline.stages import (
    Found,
    StageRecord,
    StageStore,
    key_of,
    read_record,
    usable,
)
from prune2deploy.pipeline.tracking import Tracker, check_tracking, tracking
from prune2deploy.pipeline.work import WORK, onnx_files
from prune2deploy.recipe import Recipe, dump_recipe
from prune2deploy.report import GateResult, LatencyFailure, Metrics
from prune2deploy.search import read_record as search_record

log = logging.getLogger(__name__)

CHECKPOINT_S = 60.0


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class RunOptions:
    """How much of a run is done.

    Args:
        start: this stage and those after it are run whatever there is (--from).
        checkpoint_s: seconds between two states of a training.
        say: told which stages are kept, and why others are run.
        began: told the name of each stage, before anything is done for it.
    """

    start: str | None = None
    checkpoint_s: float = CHECKPOINT_S
    say: Callable[[str], None] = _silent
    began: Callable[[str], None] = _silent


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    measure_rest: the command that measures on the devices that failed; None: none did.
    """

    folder: Path
    metrics: Metrics
    measure_rest: str | None = None

    @property
    def failures(self) -> list[LatencyFailure]:
        """Every device that could not be measured."""
        return self.metrics.latency_failures

    @property
    def gates(self) -> list[GateResult]:
        """Every gate of the recipe with its verdict."""
        return self.metrics.gates

    @property
    def gates_held(self) -> bool:
        """Whether all of them held."""
        return all(gate.held for gate in self.gates)


@dataclass(frozen=True)
class Outlook:
    """What would become of a stage.

    what: run, kept (it is there), or taken (from another run). seconds: that it took the last
    time, scaled by its epochs; None: nobody knows.
    """

    stage: str
    what: str
    reason: str
    seconds: float | None = None


@dataclass
class _Going:
    """A run with its store and what was asked of it. forced: stages that are run in any case."""

    job: Job
    store: StageStore
    options: RunOptions
    stages: list[str]
    forced: set[str] = field(default_factory=set)
    tracker: Tracker | None = None

    def depends(self, stage: str) -> dict[str, str]:
        job = self.job
        contents = {name: record.content for name, record in job.records.items()}
        return depends_of(stage, job.recipe, job.inputs, job.devices, contents)


def run_recipe(
    recipe: Recipe, output: Path | None = None, options: RunOptions | None = None
) -> RunResult:
    """Do what a recipe says, as far as it is not done already.

    Args:
        recipe: from load_recipe.
        output: folder for the results; None: the newest of runs/NAME, runs/NAME-2, … if it holds
            a run of this recipe, else the next of them.

    Returns:
        The folder and metrics. Gates and devices that failed raise nothing: see `gates_held` and
        `failures`.

    Raises:
        Prune2DeployError: something the user can mend; what was made so far is kept, and the
            next run goes on from there.
    """
    going = _begin(recipe, output, options or RunOptions())
    _go(going)
    folder = going.job.folder
    shutil.rmtree(folder.file(files.WORK), ignore_errors=True)
    metrics = _metrics(folder)
    # Of no stage: it is made from the whole folder, and may be made again with what was added.
    write_report(folder.path)
    return RunResult(folder.path, metrics, _measure_rest(going.job, metrics))


def run_until(
    recipe: Recipe, stage: str, output: Path | None = None, options: RunOptions | None = None
) -> Path:
    """Do what a recipe says up to a stage, and return the folder; the next run goes on from there.

    Raises:
        Prune2DeployError: as run_recipe, or the recipe has no such stage.
    """
    going = _begin(recipe, output, options or RunOptions(), stage)
    _go(going)
    return going.job.folder.path


def outlook(
    recipe: Recipe,
    output: Path | None = None,
    options: RunOptions | None = None,
    until: str | None = None,
) -> tuple[Path, list[Outlook]]:
    """Say what `run_recipe` (or `run_until`) would do; nothing is done or written.

    Returns:
        The folder it would be done in, and its stages in order.

    Raises:
        Prune2DeployError: as run_recipe does before its first stage.
    """
    going = _begin(recipe, output, options or RunOptions(), until)
    found: list[Outlook] = []
    for stage in going.stages:
        depends = going.depends(stage)
        before = [
            one.stage for one in found if one.what == "run" and one.stage in KINDS[stage].after
        ]
        there = Found(None, f"it depends on {' and '.join(before)}")
        if not before:
            there = _found(going, stage, depends)
        if there.record is None:
            expected = _expected(going, stage, depends)
            found.append(Outlook(stage, "run", there.reason, expected))
            continue
        going.job.records[stage] = there.record
        found.append(Outlook(stage, "taken" if there.elsewhere else "kept", there.reason))
    return going.job.folder.path, found


def _begin(
    recipe: Recipe, output: Path | None, options: RunOptions, until: str | None = None
) -> _Going:
    devices = devices_for(recipe)
    stages = stages_of(recipe, devices)
    for option, name in (("--from", options.start), ("--until", until)):
        if name is not None and name not in stages:
            raise RecipeError(
                f"{option} {name}: this recipe has no such stage. {nearest_name_hint(name, stages)}"
            )
    if options.start is not None and started_from_outside():
        raise RecipeError(
            "--from is for a run that starts its processes itself. Leave torchrun out, or remove "
            "the stages' records from the run's folder."
        )
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    check_tracking(recipe.log)
    # Opened first: a recipe that does not fit its files leaves no folder behind.
    inputs = open_inputs(recipe)
    again = options.start is not None
    folder = RunFolder.choose(output, recipe.name, dump_recipe(recipe), again=again)
    job = Job(recipe, folder, inputs, devices)
    last = stages.index(until) if until else len(stages)
    forced = set(stages[stages.index(options.start) :]) if options.start else set()
    going = _Going(job, StageStore(folder, folder.others), options, stages[: last + 1], forced)
    _check_point(going)
    return going


def _check_point(going: _Going) -> None:
    """Refuse a point that a finished search does not have, before anything is made for it."""
    job, search = going.job, going.job.recipe.prune.search
    if search is None or search.point is None:
        return
    for stage in going.stages:
        found = _found(going, stage, going.depends(stage)).record
        if found is None:
            break  # the search is yet to be done
        job.records[stage] = found
        if stage == "search":
            path = Path(found.taken_from or job.folder.path) / files.SEARCH
            search_record(path).point(search.point)
            break
    job.records.clear()


def _found(going: _Going, stage: str, depends: dict[str, str]) -> Found:
    if stage in going.forced:
        return Found(None, f"--from {going.options.start} was given")
    return going.store.find(stage, depends)


def _go(going: _Going) -> None:
    """Do every stage that has to be done."""
    folder, recipe = going.job.folder, going.job.recipe
    if is_follower():
        _follow(going)
        # Whatever the program does next, the first process does it.
        raise SystemExit(0)
    with folder.alone(), folder.logging():
        for stage in going.forced:
            going.store.forget(stage)
        log.info("prune2deploy %s, recipe '%s'", __version__, recipe.name)
        folder.write(files.RECIPE, dump_recipe(recipe))
        going.options.say(f"Folder: {folder.path}")
        try:
            with tracking(recipe, folder) as going.tracker:
                for stage in going.stages:
                    going.job.records[stage] = _done(going, stage)
        except BaseException as err:
            log.error("Stopped: %s: %s", type(err).__name__, err)
            raise


def _follow(going: _Going) -> None:
    """Take part in the trainings of the first process."""
    job = going.job
    job.follower = True
    training = [stage for stage in going.stages if trains(stage, job.recipe)]
    for stage in going.stages[: going.stages.index(training[-1]) + 1] if training else []:
        depends = going.depends(stage)
        found = going.store.find(stage, depends).record
        if found is None and stage in training:
            _prepare(going, stage, depends)
            WORK[stage](job)
        find = functools.partial(_own_record, going, stage, depends)
        job.records[stage] = wait_for(find, stage)


def _own_record(going: _Going, stage: str, depends: dict[str, str]) -> StageRecord | None:
    return usable(going.job.folder.path, stage, depends)[0]


def _done(going: _Going, stage: str) -> StageRecord:
    """Keep, take or run a stage; its record says what it left."""
    going.options.began(stage)
    depends = going.depends(stage)
    found = _found(going, stage, depends)
    if found.record is None:
        _tell(going, f"{stage}: run, because {found.reason}")
        return _run(going, stage, depends)
    if found.elsewhere:
        _tell(going, f"{stage}: taken from another run; {found.reason}")
        return going.store.adopt(found.record)
    _tell(going, f"{stage}: kept, of {found.record.finished}; {found.reason}")
    return found.record


def _run(going: _Going, stage: str, depends: dict[str, str]) -> StageRecord:
    """Run a stage and record it; one that is not whole is recorded for this run only."""
    job = going.job
    log.info("Stage: %s", stage)
    _prepare(going, stage, depends)
    if stage in going.forced:
        shutil.rmtree(job.folder.file(files.WORK), ignore_errors=True)
        if stage == "profile":
            _set_measurements_aside(job.folder)
        journal = job.folder.file(files.JOURNAL)
        if stage == "search" and journal.exists():
            journal.replace(journal.with_name(journal.name + ".old"))
    assert going.tracker is not None
    going.tracker.open()
    start = time.perf_counter()
    done = WORK[stage](job)
    seconds = time.perf_counter() - start
    if stage == "report":
        going.tracker.final(_metrics(job.folder))
    record = going.store.keep(stage, depends, done.files, done.result, seconds)
    if not done.whole:
        going.store.forget(stage)
    return record


def _prepare(going: _Going, stage: str, depends: dict[str, str]) -> None:
    _seed(seed_from(going.job.recipe.seed, "stage", stage))
    work = going.job.folder.file(files.WORK)
    going.job.checkpoints = Checkpoints(work, key_of(depends), going.options.checkpoint_s)


def _set_measurements_aside(folder: RunFolder) -> None:
    """Let what was measured not count, and not be lost either."""
    for path in folder.file(files.LATENCY).glob("*.json"):
        path.replace(path.with_name(path.name + ".old"))


def _seed(seed: int) -> None:
    """A stage draws the same numbers whether those before it were run or kept."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _tell(going: _Going, text: str) -> None:
    log.info("%s", text)
    going.options.say(text)


def _expected(going: _Going, stage: str, depends: dict[str, str]) -> float | None:
    """What the stage took the last time, here or in a run beside this one."""
    for folder in (going.job.folder.path, *going.store.others):
        record, _ = read_record(folder, stage)
        if record is None:
            continue
        key = f"recipe {stage}.epochs"
        then, now = (float(one.get(key, 1)) for one in (record.depends, depends))
        return record.seconds * now / then
    return None


def _metrics(folder: RunFolder) -> Metrics:
    text = folder.file(files.METRICS).read_text(encoding="utf-8")
    return Metrics.model_validate_json(text)


def _measure_rest(job: Job, metrics: Metrics) -> str | None:
    failed = [failure.device for failure in metrics.latency_failures]
    if not failed:
        return None
    models = list(onnx_files(job).values())
    return measure_rest_command(models, job.recipe.profile, failed, job.folder.path)
