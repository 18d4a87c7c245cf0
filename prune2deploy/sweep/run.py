"""A sweep from its start to its summary: trainings beside each other, then measurements alone."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prune2deploy.errors import Prune2DeployError, RecipeError
from prune2deploy.pipeline import RunOptions, outlook, run_recipe, run_until
from prune2deploy.pipeline.depends import shared_keys
from prune2deploy.pipeline.folder import METRICS, STAGES, RunFolder
from prune2deploy.pipeline.stages import read_record
from prune2deploy.recipe import Combination, Sweep, dump_recipe
from prune2deploy.report import Metrics
from prune2deploy.sweep.board import Board, Row, State, read_status
from prune2deploy.sweep.cluster import Died, Workers, cluster
from prune2deploy.sweep.parts import AtWork, Part, must_wait, parts_of
from prune2deploy.sweep.summary import SweepSummary, deployed, summarize, write_summary
from prune2deploy.sweep.work import MARK, Order, Outcome, attempt, own_code
from prune2deploy.train import load_task

STATUS = ".status"  # a folder with what each worker says
_LOOK_S = 0.5

ClusterOf = Callable[[Sweep], AbstractContextManager[Workers]]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves. rows: every combination as it ended."""

    folder: Path
    rows: list[Row]
    summary: SweepSummary

    @property
    def failed(self) -> list[Row]:
        """Combinations that failed, or that a device did not measure."""
        return [row for row in self.rows if row.state != "finished"]

    @property
    def gates_held(self) -> bool:
        """Whether every gate of those that finished held."""
        return not any(run.failed_gates for run in self.summary.runs)


@dataclass
class _Sweeping:
    """A sweep while it goes on.

    parts: what each combination still has to do. mark: tells this sweep's folder from another's.
    """

    sweep: Sweep
    folder: Path
    board: Board
    checkpoint_s: float
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)

    def ready(self, *, measures: bool) -> list[Row]:
        """Combinations that go on with a part of this kind."""
        return [
            row
            for row in self.board
            if row.state != "failed"
            and self.parts[row.name]
            and self.parts[row.name][0].measures == measures
        ]


def sweep_folder(name: str, combinations: tuple[Combination, ...], output: Path | None) -> Path:
    """Find the folder of a sweep; nothing is made yet.

    Returns:
        `output`; or the newest of sweeps/NAME, sweeps/NAME-2, … if no run in it is of another
        recipe than this sweep's, else the next of them.

    Raises:
        RecipeError: `output` holds other runs under the names of this sweep's.
    """
    if output is not None:
        other = _other_run(output, combinations)
        if other is not None:
            raise RecipeError(
                f"--output {output} already holds a run {other} of another recipe, and a run is "
                "never overwritten. Name another folder, or remove this one yourself."
            )
        return output.absolute()
    base = (Path("sweeps") / name).absolute()
    newest, number = base, 1
    while (following := base.with_name(f"{name}-{number + 1}")).exists():
        newest, number = following, number + 1
    return newest if _other_run(newest, combinations) is None else following


def _other_run(folder: Path, combinations: tuple[Combination, ...]) -> str | None:
    for one in combinations:
        if RunFolder(folder / one.name).holds_another(dump_recipe(one.recipe)):
            return one.name
    return None


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    watch: Callable[[Board], AbstractContextManager[Callable[[Row], None]]],
    checkpoint_s: float = 60.0,
    cluster_of: ClusterOf = cluster,
) -> SweepResult:
    """Do every combination, as far as it is not done already.

    First all that trains, in parallel; then the latency measurements, one after the other in this
    process, while nothing of the sweep trains.

    Args:
        folder: from `sweep_folder`.
        watch: shows the board for as long as its with-block lasts; what it gives is told each row
            that changed.

    Returns:
        Every combination as it ended. Those that failed raise nothing.

    Raises:
        Prune2DeployError: the cluster cannot be used, or another sweep is at work in the folder.
    """
    rows = [Row(one, folder / one.name) for one in sweep.combinations]
    going = _Sweeping(sweep, folder, Board(rows), checkpoint_s)
    with RunFolder(folder).alone(), watch(going.board) as told:
        going.board.told = told
        (folder / MARK).write_text(going.mark, encoding="utf-8")
        (folder / STATUS).mkdir(exist_ok=True)
        for row in rows:
            _look_for_what_is_done(going, row)
        while any(row.state not in ("failed",) and going.parts[row.name] for row in rows):
            if going.ready(measures=False):
                with cluster_of(sweep) as workers:
                    _train(going, workers)
            for row in going.ready(measures=True):
                _measure(going, row)
        shutil.rmtree(folder / STATUS, ignore_errors=True)
        summary = summarize(sweep.name, rows)
        write_summary(folder, summary)
    return SweepResult(folder, rows, summary)


def _look_for_what_is_done(going: _Sweeping, row: Row) -> None:
    """Leave out the parts whose stages are kept."""
    recipe = row.combination.recipe
    going.keys[row.name] = shared_keys(recipe)
    parts = going.parts[row.name] = parts_of(recipe)
    while parts and (row.folder / STAGES / f"{parts[0].until}.json").exists():
        try:
            _, stages = outlook(recipe, row.folder, until=parts[0].until)
        except Prune2DeployError:
            return  # told by whoever runs it
        if any(stage.what != "kept" for stage in stages):
            return
        del parts[0]
    if not parts:
        _finish(going, row, kept=True)
    elif parts[0].measures:
        going.board.change(row, "trained", metric=_judged(row))


def _train(going: _Sweeping, workers: Workers) -> None:
    """Do every part that does not measure, by workers, until none is left."""
    while going.orders or going.ready(measures=False):
        for row in _may_begin(going):
            _give(going, row, workers)
        for name, outcome in workers.wait(_LOOK_S):
            row = next(row for row in going.board if row.name == name)
            _ended(going, row, outcome)
        for row in going.board:
            if row.name in going.orders:
                _look_at_status(going, row)


def _may_begin(going: _Sweeping) -> Iterator[Row]:
    """Those that go on, the ones whose worker died first, as long as there may be more at once.

    One whose next stages somebody at work is about to finish waits, to take them from there.
    """
    most = going.sweep.settings.parallel or len(going.board)
    for row in sorted(going.ready(measures=False), key=lambda row: -row.deaths):
        if row.name in going.orders:
            continue
        others = [
            AtWork(going.parts[one.name][0].stages, going.keys[one.name], one.began)
            for one in going.board
            if one.name in going.orders
        ]
        if len(others) < most and not must_wait(
            going.parts[row.name][0].stages, going.keys[row.name], others
        ):
            yield row


def _give(going: _Sweeping, row: Row, workers: Workers) -> None:
    recipe = row.combination.recipe
    order = Order(
        recipe=dump_recipe(recipe),
        folder=row.folder,
        until=going.parts[row.name][0].until,
        status=going.folder / STATUS / f"{row.name}.json",
        attempt=uuid.uuid4().hex,
        mark=going.mark,
        code=own_code(),
        threads=recipe.threads or max(1, int(going.sweep.cpus)),
        again=row.deaths > 0,
        checkpoint_s=going.checkpoint_s,
    )
    going.orders[row.name] = order
    workers.give(row.name, order)
    going.board.change(row, "queued", began=[])


def _look_at_status(going: _Sweeping, row: Row) -> None:
    order = going.orders[row.name]
    status = read_status(order.status, order.attempt)
    if status is None:
        return
    if row.started is None:
        row.begin(time.monotonic())
    row.detail = status.label
    if status.total:
        row.detail += f" {status.done:.0f}/{status.total:.0f}"
    row.detail = f"{row.detail} {status.info}".strip()
    row.began = status.began
    going.board.change(row, "at work", stage=status.began[-1] if status.began else row.stage)


def _ended(going: _Sweeping, row: Row, outcome: Outcome | Died) -> None:
    """A worker's part is over."""
    del going.orders[row.name]
    row.stop(time.monotonic())
    row.detail = ""
    if isinstance(outcome, Died):
        if row.deaths < going.sweep.settings.retries:
            going.board.change(row, "waiting", deaths=row.deaths + 1)
            return
        outcome = Outcome(
            f"Its worker died {row.deaths + 1} times, the last time with: {outcome.reason} If "
            "memory ran out, set memory_gb or parallel in the sweep; the log is "
            f"{row.folder / 'run.log'}."
        )
    if outcome.error is not None:
        _fail(going, row, outcome)
        return
    del going.parts[row.name][0]
    going.board.change(row, "trained", metric=_judged(row))


def _judged(row: Row) -> tuple[str, float] | None:
    """The metric of the pruned network as far as it is trained, None: it is not cut yet."""
    recipe = row.combination.recipe
    for stage in ("finetune", "prune"):
        record, _ = read_record(row.folder, stage)
        if record is not None:
            name = load_task(recipe.task, recipe.base_dir).metric
            return name, record.result["metrics"][name]
    return None


def _fail(going: _Sweeping, row: Row, outcome: Outcome) -> None:
    going.board.change(row, "failed", error=outcome.error, traceback=outcome.traceback)


def _measure(going: _Sweeping, row: Row) -> None:
    """Do a part that measures, in this process, and nothing beside it."""
    part = going.parts[row.name][0]
    recipe = row.combination.recipe
    options = RunOptions(
        checkpoint_s=going.checkpoint_s,
        began=lambda stage: (
            going.board.change(row, "measuring", stage=stage) if stage in part.stages else None
        ),
    )
    row.begin(time.monotonic())
    if part is going.parts[row.name][-1]:
        outcome = attempt(lambda: run_recipe(recipe, row.folder, options))
    else:
        outcome = attempt(lambda: run_until(recipe, part.until, row.folder, options))
    row.stop(time.monotonic())
    if outcome.error is not None:
        _fail(going, row, outcome)
        return
    del going.parts[row.name][0]
    if going.parts[row.name]:
        going.board.change(row, "waiting")
    else:
        _finish(going, row)


def _finish(going: _Sweeping, row: Row, *, kept: bool = False) -> None:
    """Read what a run found."""
    metrics = Metrics.model_validate_json((row.folder / METRICS).read_bytes())
    row.metrics, row.kept = metrics, kept
    row.metric = (metrics.metric, deployed(metrics))
    if kept:
        row.seconds = sum(metrics.seconds.values())
    state: State = "not measured" if metrics.latency_failures else "finished"
    error = "\n".join(one.message for one in metrics.latency_failures) or None
    going.board.change(row, state, stage="report", error=error)


@contextmanager
def unwatched(board: Board) -> Iterator[Callable[[Row], None]]:
    """Show nothing."""
    yield lambda row: None
