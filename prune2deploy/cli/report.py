"""The command that makes pages for the browser from the folders of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show
from prune2deploy.cli.session import session


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Page to write. Left out: RUN/report.html; of several runs comparison.html.",
        ),
    ] = None,
) -> None:
    """Write a run's report.html again from its folder, or one page that compares several runs."""
    with session(), progress.task("Making the page"):
        from prune2deploy.pipeline.reporting import write_comparison, write_report

        if len(runs) == 1:
            written = write_report(runs[0], output)
        else:
            written = write_comparison(runs, output or Path("comparison.html"))
    show(f"Wrote {written}")
