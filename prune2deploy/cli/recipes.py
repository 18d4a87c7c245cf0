"""Commands that take a recipe, or make one: run, check, init, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show
from prune2deploy.cli.session import GATE_FAILED, USER_ERROR, session, tell_error
from prune2deploy.cli.values import MODEL_HELP

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the recipe, such as finetune.epochs=5; may be repeated.",
    ),
]


def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results; left out: runs/NAME, or the next free number.",
        ),
    ] = None,
) -> None:
    """Prune, fine-tune, export, check and measure, as the recipe says.

    Exit code: 0 if every gate held, 3 if one failed (all results are kept), 1 for an error; also
    if a device could not be measured (the others' results are kept).
    """
    with session() as work:
        with progress.task("Loading PyTorch"):
            from prune2deploy.recipe import load_recipe

        # Before the imports below, which also take time: a slip in the recipe is told first.
        loaded = load_recipe(recipe, overrides or ())

        from prune2deploy.pipeline import run_recipe
        from prune2deploy.report import results_table

        where = output or f"runs/{loaded.name}, or the highest-numbered folder of that name"
        work.kept = f"What was finished is kept in {where}."
        result = run_recipe(loaded, output)
        show(results_table(result.metrics), f"Everything is in {result.folder}")
    if result.failures:
        for failure in result.failures:
            tell_error(failure.message)
        typer.echo(f"All else is kept. Measure the rest with: {result.measure_rest}", err=True)
        raise typer.Exit(USER_ERROR)
    if not result.gates_held:
        raise typer.Exit(GATE_FAILED)


def check(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Check a recipe without training: settings, files, shapes, classes, what can be cut."""
    with session():
        with progress.task("Loading PyTorch"):
            from prune2deploy.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or ())

        from prune2deploy.pipeline import check_recipe
        from prune2deploy.report import check_table

        show(check_table(check_recipe(loaded)))


def init(
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of images, one folder per class.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trained weights of the model.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Recipe to write.")] = Path(
        "recipe.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented recipe to start from, for a model and a folder of images."""
    with session():
        with progress.task("Loading PyTorch"):
            from prune2deploy.recipe.starter import starter_recipe, survey_folder, write_recipe

        text = starter_recipe(model, survey_folder(data), output, checkpoint)
        write_recipe(output, text, replace=force)
        show(f"Wrote {output}. Next: prune2deploy check {output}")


def schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    import json

    with session():
        from prune2deploy.recipe import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=2))
