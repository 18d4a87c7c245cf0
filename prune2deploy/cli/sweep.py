"""`sweep`: many runs of one recipe, on show while they go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show, table
from prune2deploy.cli.progress import duration
from prune2deploy.cli.session import GATE_FAILED, USER_ERROR, Session, session, tell_error

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prune2deploy.sweep import Board, Row, SweepResult

_SHOWN_ROWS = 30
_HEADINGS = ("run", "state", "stage", "time", "accuracy", "faster")
_FIRST = ("measuring", "at work", "queued", "failed", "not measured", "trained", "waiting")


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep, a YAML file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results.",
            show_default="sweeps/NAME, or the next free number if that holds other runs",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and list the combinations.")
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How often the state of a training is written down."
        ),
    ] = 60.0,
) -> None:
    """Run a recipe with many values: methods, budgets, seeds, any key, in parallel with Ray.

    Trainings go on beside each other; then the latency is measured, one run after the other, while
    nothing trains. The same command again skips what is finished and goes on with the rest. Needs
    the extra 'sweep'.

    Exit code: 0 if all runs ended well and every gate held, 3 if a gate failed, 1 if a run failed,
    a device was not measured, or the sweep could not begin.
    """
    with session() as work:
        with progress.task("Loading PyTorch"):
            from prune2deploy.recipe import load_sweep

        loaded = load_sweep(file)

        from prune2deploy.pipeline.reporting import write_comparison
        from prune2deploy.sweep import run_sweep, sweep_folder
        from prune2deploy.sweep.cluster import require_ray
        from prune2deploy.sweep.summary import NOTE, group_table, run_table

        folder = sweep_folder(loaded.name, loaded.combinations, output)
        if dry_run:
            rows = [(one.name, _values(one.values)) for one in loaded.combinations]
            show(f"In {folder}:", table(("run", "values"), rows))
            return
        require_ray()  # before anything is made, and also where nothing has to be trained
        work.kept = "What was finished is kept; the same command goes on from there."
        work.say(f"{len(loaded.combinations)} combinations in {folder}")
        result = run_sweep(
            loaded,
            folder,
            watch=lambda board: _watched(board, work),
            checkpoint_s=checkpoint_every,
        )
        show(table(*run_table(result.summary)), table(*group_table(result.summary)), NOTE)
        show(f"Everything is in {folder}, both tables in sweep.md and sweep.json")
        compared = [row.folder for row in result.rows if row.state == "finished"]
        if len(compared) > 1:
            show(f"One page of all: {write_comparison(compared, folder / 'report.html')}")
    _tell_failures(result)
    if result.failed:
        raise typer.Exit(USER_ERROR)
    if not result.gates_held:
        raise typer.Exit(GATE_FAILED)


def _tell_failures(result: SweepResult) -> None:
    for row in result.failed:
        tell_error(f"{row.name}: {row.error}")
        if row.traceback is not None:
            typer.echo(row.traceback, err=True)


def _values(values: dict[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


@contextmanager
def _watched(board: Board, work: Session) -> Iterator[Callable[[Row], None]]:
    """Show a table on a terminal, and a line per change anywhere else."""
    with work.pinned(lambda: _picture(board)) as on_terminal:
        yield (lambda row: None) if on_terminal else (lambda row: work.say(_line(board, row)))


def _picture(board: Board) -> RenderableType:
    """The rows, those at work first where not all fit, and how many there are of each state."""
    from rich.console import Group
    from rich.text import Text

    rows = list(board)
    if len(rows) > _SHOWN_ROWS:
        order = {state: i for i, state in enumerate(_FIRST)}
        rows = sorted(rows, key=lambda row: order.get(row.state, len(order)))[:_SHOWN_ROWS]
    now = time.monotonic()
    shown = table(_HEADINGS, [_cells(row, now) for row in rows])
    return Group(shown, Text(_counts(board)))


def _cells(row: Row, now: float) -> tuple[str, ...]:
    state = row.state + (f", worker died {row.deaths}×" if row.deaths else "")
    stage = f"{row.stage} {row.detail}".strip() if row.state == "at work" else row.stage
    seconds = row.elapsed(now)
    took = duration(seconds) if seconds else ""
    return row.name, state, stage, took, _accuracy(row), _faster(row)


def _accuracy(row: Row) -> str:
    return "" if row.metric is None else f"{row.metric[0]} {row.metric[1]:.2f}"


def _faster(row: Row) -> str:
    if row.metrics is None:
        return ""
    from prune2deploy.sweep.summary import device_figures, speedup_text

    found = [device_figures(one, row.metrics.gated_precision) for one in row.metrics.latency]
    return ", ".join(f"{one.device} {speedup_text(one)}" for one in found)


def _counts(board: Board) -> str:
    counted = Counter(row.state for row in board)
    return ", ".join(f"{number} {state}" for state, number in counted.items())


def _line(board: Board, row: Row) -> str:
    """One line: who, what, and how far the whole sweep is."""
    over = sum(row.state in ("finished", "failed", "not measured") for row in board)
    name, state, stage, took, accuracy, faster = _cells(row, time.monotonic())
    what = f"{state} before" if row.kept else state
    if row.state in ("at work", "measuring"):
        what = f"{state}, {stage}" if stage else state
    parts = [f"[{over}/{len(board)}] {name}: {what}"]
    if row.state in ("finished", "not measured"):
        parts += [accuracy, f"faster on {faster}" if faster else "", took]
    if row.state == "failed":
        parts.append((row.error or "").partition("\n")[0])
    return ", ".join(filter(None, parts))
