"""Commands about artifacts: verify, sign, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli.output import show, table
from prune2deploy.cli.session import GATE_FAILED, USER_ERROR, session, tell_error

DistArgument = Annotated[
    Path, typer.Argument(metavar="DIST", help="An artifact: dist/NAME in the folder of a run.")
]
OnOption = Annotated[
    list[str] | None, typer.Option("--on", metavar="DEVICE", help="A device; may be repeated.")
]


def verify(
    dist: DistArgument,
    on: OnOption = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUBLIC.pem", help="It must be signed by this Ed25519 key."),
    ] = None,
) -> None:
    """Check every file of an artifact, its signature, and its answers on devices."""
    with session():
        from prune2deploy.artifact import verify as verify_artifact

        verdict = verify_artifact(dist, public_key=key, on=on or ())
    if verdict.problems:
        for problem in verdict.problems:
            tell_error(problem)
        raise typer.Exit(USER_ERROR)
    signed = "signed by this key" if key else "signed" if verdict.signed else "not signed"
    ran = f", and it answers alike on {', '.join(verdict.ran_on)}" if verdict.ran_on else ""
    files = (
        f"{len(verdict.manifest.files)} files as the manifest of '{verdict.manifest.name}' has them"
    )
    show(f"{dist}: {files}, {signed}{ran}")


def sign(
    dist: DistArgument,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATE.pem", help="Ed25519 key without a password."),
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATE.pem", help="Make a key, and sign with it."),
    ] = None,
) -> None:
    """Sign an artifact: manifest.sig, over the manifest that has the hashes of all else."""
    if (key is None) == (new_key is None):
        raise typer.BadParameter("give one of --key and --new-key", param_hint="--key")
    with session():
        from prune2deploy.artifact import new_key as make_key
        from prune2deploy.artifact import sign as sign_artifact

        if new_key is not None:
            show(f"Made {new_key} (keep it secret) and {make_key(new_key)} (give it away)")
        show(f"Wrote {sign_artifact(dist, key or new_key)}")  # type: ignore[arg-type]


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of a run, or its dist.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The one that may be worse.")],
    on: OnOption = None,
    stored: Annotated[
        bool,
        typer.Option(
            "--stored", help="Compare latencies that were measured then, instead of measuring both."
        ),
    ] = False,
    max_accuracy_drop: Annotated[
        float, typer.Option(min=0, help="In units of the metric, as percentage points.")
    ] = 0.5,
    max_slowdown: Annotated[
        float, typer.Option(min=0, help="Share of the base's time that may be added.")
    ] = 0.05,
    max_growth: Annotated[
        float, typer.Option(min=0, help="Share of the base's file size that may be added.")
    ] = 0.02,
    min_time: Annotated[
        float, typer.Option(min=0.05, help="Seconds of timed runs per model, at the least.")
    ] = 5.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="What is undecided counts as a regression.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two runs or artifacts: accuracy, size, and latency measured now, in turns.

    Exit code: 3 if something is worse than allowed, surely (its whole interval is), 1 for an
    error, else 0. An interval that reaches beyond what is allowed is undecided: measure for
    longer, or --strict.
    """
    with session():
        from prune2deploy.artifact.compare import Tolerance
        from prune2deploy.artifact.compare import compare as compare_sides
        from prune2deploy.latency import ProfileOptions

        found = compare_sides(
            base,
            new,
            on=on or ("local",),
            stored=stored,
            tolerance=Tolerance(max_accuracy_drop, max_slowdown, max_growth),
            options=ProfileOptions(min_time_s=min_time),
        )
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=2))
        else:
            rows = [(row.what, row.base, row.new, row.change, row.outcome) for row in found.rows]
            show(table(("", "base", "new", "change", ""), rows))
            if stored:
                show("Latencies are of other days, and so of other conditions.")
    if found.regressed or (strict and found.undecided):
        raise typer.Exit(GATE_FAILED)
