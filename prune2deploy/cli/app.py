"""The command line's list of commands. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from prune2deploy import __version__
from prune2deploy.cli import facts, models, recipes
from prune2deploy.cli.artifacts import compare, sign, verify
from prune2deploy.cli.build import build
from prune2deploy.cli.devices import devices
from prune2deploy.cli.explain import explain
from prune2deploy.cli.output import make_output_safe
from prune2deploy.cli.report import report
from prune2deploy.cli.runs import runs
from prune2deploy.cli.sweep import sweep

app = typer.Typer(
    name="prune2deploy",
    help="From a trained PyTorch vision model to a smaller, measured ONNX model.",
    no_args_is_help=True,
    # A traceback is for us to read: plain, whole and without local variables.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Recipes": (recipes.run, sweep, report, recipes.check, recipes.init, recipes.schema),
    "Models": (models.inspect, models.export, models.profile, explain, build),
    "Artifacts": (verify, sign, compare),
    "Help": (facts.methods, facts.doctor),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(runs, name="runs", rich_help_panel="Recipes")
app.add_typer(devices, name="devices", rich_help_panel="Models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prune2deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the console script `prune2deploy`."""
    make_output_safe()
    app()
