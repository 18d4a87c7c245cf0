"""Commands that take a recipe, or make one: run, check, init, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show, table
from prune2deploy.cli.session import GATE_FAILED, USER_ERROR, session, tell_error
from prune2deploy.cli.values import MODEL_HELP

if TYPE_CHECKING:
    from prune2deploy.pipeline import Outlook

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="The recipe, a YAML file; or the folder of a run, for its recipe."
    ),
]
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
            help="Folder for the results.",
            show_default="runs/NAME, or the next free number if that holds another recipe's run",
        ),
    ] = None,
    point: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Finish this point of the front of an earlier search; nothing is searched again.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="Run this stage and those after it in any case."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stop after this stage; the next run goes on."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say which stages would be run, why, and how long."),
    ] = False,
    ci: Annotated[
        bool,
        typer.Option(
            "--ci",
            help="Also write junit.xml with the gates, and the summary where GitHub shows it.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How often the state of a training is written down."
        ),
    ] = 60.0,
) -> None:
    """Prune, fine-tune, export, check and measure, as the recipe says.

    Stages that are done already, from the same recipe, data and code, are not done again; a run
    that was stopped goes on from where it was.

    Exit code: 0 if every gate held, 3 if one failed (all results are kept), 1 for an error; also
    if a device could not be measured (the others' results are kept).
    """
    with session() as work:
        with progress.task("Loading PyTorch"):
            from prune2deploy.recipe import load_recipe

        # Before the imports below, which also take time: a slip in the recipe is told first.
        loaded = load_recipe(_of_run(recipe), [*(overrides or ()), *_point(point)])

        from prune2deploy.pipeline import RunOptions, outlook, run_recipe, run_until
        from prune2deploy.report import results_table
        from prune2deploy.report.ci import tell_ci

        options = RunOptions(start=start, checkpoint_s=checkpoint_every, say=work.say)
        if dry_run:
            folder, stages = outlook(loaded, output, options, until)
            show(f"In {folder}:", table(("stage", "", "because", "takes about"), map(_row, stages)))
            return
        work.kept = "What was finished is kept; the same command goes on from there."
        if until is not None:
            show(f"Done until {until}, in {run_until(loaded, until, output, options)}")
            return
        result = run_recipe(loaded, output, options)
        show(results_table(result.metrics), f"Everything is in {result.folder}")
        if ci:
            show(*tell_ci(result.folder, result.metrics))
    if result.failures:
        for failure in result.failures:
            tell_error(failure.message)
        typer.echo(f"All else is kept. Measure the rest with: {result.measure_rest}", err=True)
        raise typer.Exit(USER_ERROR)
    if not result.gates_held:
        raise typer.Exit(GATE_FAILED)


def _of_run(recipe: Path) -> Path:
    """A run's folder stands for its recipe."""
    return recipe / "recipe.yaml" if recipe.is_dir() else recipe


def _point(number: int | None) -> list[str]:
    return [] if number is None else [f"prune.search.point={number}"]


def _row(stage: Outlook) -> tuple[str, str, str, str]:
    from prune2deploy.cli.progress import duration

    takes = "" if stage.what != "run" else "unknown"
    if stage.seconds is not None:
        takes = duration(stage.seconds)
    return stage.stage, stage.what, stage.reason, takes


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
