"""The command that says why a pruned network is not faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show
from prune2deploy.cli.session import session


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="DEVICE",
            help="Device of devices.yaml. Left out: the one that the run was measured on.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw where the time went, cause by cause."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON instead.")
    ] = False,
) -> None:
    """Say why a pruned network is not as much faster as its MACs promised, cause by cause.

    Both networks are profiled again, layer by layer.
    """
    if picture is not None and picture.suffix.lower() != ".svg":
        raise typer.BadParameter(
            f"'{picture}' should end in .svg, the one format of these pictures; any browser "
            "shows it",
            param_hint="--picture",
        )
    with session():
        with progress.task("Loading PyTorch"):
            from prune2deploy.latency.explain_format import format_explanation
            from prune2deploy.pipeline.explaining import explain_run

        explanation = explain_run(run, on)
        if as_json:
            show(json.dumps(explanation.to_dict(), indent=2))
        else:
            show(*format_explanation(explanation))
        if picture is not None:
            from prune2deploy.report.waterfall import write_waterfall

            write_waterfall(explanation, picture)
            typer.echo(f"Wrote {picture}", err=as_json)
