"""Commands about runs that were made: runs list, show and clean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune2deploy.cli.output import show, table
from prune2deploy.cli.session import session

if TYPE_CHECKING:
    from prune2deploy.pipeline.runs import RunFacts

runs = typer.Typer(no_args_is_help=True, help="The runs that were made: list, show, clean.")

FolderOption = Annotated[
    Path, typer.Option("--in", metavar="DIR", help="Folder that the runs are in.")
]


@runs.command("list")
def list_runs(folder: FolderOption = Path("runs")) -> None:
    """List the runs in a folder, the newest first."""
    with session():
        from prune2deploy.pipeline.runs import find_runs

        found = find_runs(folder)
        headings = ("run", "state", "last stage", "when", "method", "gates", "faster", "size")
        show(table(headings, map(_row, found)) if found else f"No runs in {folder}.")


def _row(run: RunFacts) -> tuple[str, ...]:
    last = run.records[-1].stage if run.records else "none"
    when = run.changed.strftime("%Y-%m-%d %H:%M")
    size = f"{run.bytes / 1e6:.1f} MB"
    metrics = run.metrics
    if metrics is None:
        return (run.folder.name, run.state, last, when, "", "", "", size)
    held = all(gate.held for gate in metrics.gates)
    gates = ("held" if held else "FAILED") if metrics.gates else "none"
    faster = ", ".join(
        f"{one['device']} {speedup['ratio']:.2f}x"
        for one in metrics.latency
        for speedup in one["speedups"][:1]
    )
    name = run.folder.name
    return (name, run.state, last, when, metrics.pruning.method, gates, faster, size)


@runs.command("show")
def show_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
) -> None:
    """Show the stages of a run: when, how long, from where."""
    with session():
        from prune2deploy.pipeline.depends import KINDS
        from prune2deploy.pipeline.runs import facts_of
        from prune2deploy.report import results_table

        facts = facts_of(run)
        finished = {record.stage: record for record in facts.records}
        rows = []
        for stage in KINDS:
            record = finished.get(stage)
            if record is None:
                continue
            origin = "" if record.taken_from is None else f"taken from {record.taken_from}"
            files = ", ".join(record.files)
            rows.append((stage, record.finished, f"{record.seconds:.1f} s", origin, files))
        show(f"{facts.folder}: {facts.state}, {facts.bytes / 1e6:.1f} MB")
        show(table(("stage", "finished", "took", "", "files"), rows))
        if facts.metrics is not None and facts.state == "finished":
            show(results_table(facts.metrics))


@runs.command()
def clean(
    folder: FolderOption = Path("runs"),
    keep: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Also remove finished runs, all but the newest so many of each name.",
            show_default="all stay",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove runs that were stopped; with --keep also old finished ones."""
    with session() as work:
        from prune2deploy.errors import RecipeError
        from prune2deploy.pipeline.runs import find_runs, remove, to_clean

        chosen = to_clean(find_runs(folder), keep)
        if not chosen:
            show(f"Nothing to remove in {folder}.")
            return
        headings = ("run", "state", "last stage", "when", "method", "gates", "faster", "size")
        show(table(headings, map(_row, chosen)))
        total = sum(run.bytes for run in chosen)
        question = f"Remove these {len(chosen)} runs, {total / 1e6:.1f} MB?"
        if not yes:
            if not sys.stdin.isatty():
                raise RecipeError(f"{question} Nobody can be asked here: add --yes to remove them.")
            if not typer.confirm(question, err=True):
                show("Nothing was removed.")
                return
        work.kept = "Some of the runs may be removed."
        for run in chosen:
            remove(run)
        show(f"Removed {len(chosen)} runs, {total / 1e6:.1f} MB.")
