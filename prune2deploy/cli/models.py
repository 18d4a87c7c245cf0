"""Commands that take a model: inspect, export, profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show
from prune2deploy.cli.session import session
from prune2deploy.cli.values import (
    ArgsOption,
    ClassesOption,
    InputOption,
    ModelArgument,
    parse_args,
    parse_cores,
    parse_shape,
)
from prune2deploy.errors import DeviceError

if TYPE_CHECKING:
    from prune2deploy.latency import ProfileOptions

CheckpointOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Trained weights of the model.")
]


def inspect(
    model: ModelArgument,
    input_shape: InputOption = None,
    checkpoint: CheckpointOption = None,
    classes: ClassesOption = None,
    args: ArgsOption = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw the network, its groups in colours."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List each of many groups that are alike.")
    ] = False,
) -> None:
    """Show which channels of a model can be cut together, and what is frozen and why."""
    shape, keywords = parse_shape(input_shape, model), parse_args(args)
    if picture is not None and picture.suffix.lower() != ".svg":
        raise typer.BadParameter(
            f"'{picture}' should end in .svg, the one format of these pictures; any browser "
            "shows it",
            param_hint="--picture",
        )
    with session():
        with progress.task("Loading PyTorch"):
            from prune2deploy.pipeline import inspect_model
            from prune2deploy.report import groups_table

        graph = inspect_model(
            model,
            args=keywords,
            checkpoint=checkpoint,
            input_shape=shape,
            num_classes=classes,
            base_dir=Path.cwd(),
        )
        show(groups_table(graph, every))
        if picture is not None:
            from prune2deploy.report import write_picture

            write_picture(graph, picture)
            show(f"Wrote {picture}")


def export(
    model: ModelArgument,
    onnx: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="ONNX file to write.")],
    input_shape: InputOption = None,
    checkpoint: CheckpointOption = None,
    classes: ClassesOption = None,
    args: ArgsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per run, fixed in the file.")] = 1,
    opset: Annotated[
        int | None, typer.Option(min=13, help="ONNX operator set.  [default: the exporter's]")
    ] = None,
    simplify: Annotated[bool, typer.Option(help="Run onnx-simplifier over the file.")] = True,
    tolerance: Annotated[
        float, typer.Option(help="Largest relative difference from PyTorch that is accepted.")
    ] = 1e-4,
) -> None:
    """Write a model as ONNX, batch norms folded, and compare it with PyTorch."""
    shape, keywords = parse_shape(input_shape, model), parse_args(args)
    with session():
        with progress.task("Loading PyTorch"):
            from prune2deploy.export import export_model_file
            from prune2deploy.models import load_model

        network = load_model(
            model, keywords, base_dir=Path.cwd(), num_classes=classes, checkpoint=checkpoint
        )
        parity = export_model_file(
            network,
            onnx,
            input_shape=shape,
            batch=batch,
            opset=opset,
            simplify=simplify,
            tolerance=tolerance,
        )
        show(
            f"Wrote {onnx}",
            f"Largest difference from PyTorch over {parity.samples} random inputs: "
            f"{parity.max_abs_diff:.2g} absolute, {parity.max_rel_diff:.2g} relative",
        )
        if checkpoint is None and not {"weights", "pretrained"} & keywords.keys():
            show(
                f"No --checkpoint was named, so the weights are what {model} builds: for "
                "torchvision, timm, cifar and digits random ones, good for timing only"
            )


def profile(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL.onnx...", help="ONNX files; the first is the baseline."),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE", help="A name of devices.yaml; may be repeated.  [default: local]"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the runtime.  [default: the device's, or 1]"),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="CPUs to run on, one per thread.  [default: chosen]"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per run, where the file leaves it open.")
    ] = None,
    min_time_s: Annotated[
        float, typer.Option("--min-time", metavar="SECONDS", help="Timed runs, for each model.")
    ] = 5.0,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to try again what was disturbed.")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep results in DIR/latency, and measure only what is not there yet.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is there.")] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show instead how long each layer takes.")
    ] = False,
) -> None:
    """Time ONNX models on this machine or on devices; two or more are compared in turns.

    A device that fails does not stop the others; the exit code is then 1.
    """
    pin = parse_cores(cores)
    names = on or ["local"]
    with session() as work:
        if output is not None:
            work.kept = f"What was measured is kept in {output}."
        from prune2deploy.latency import ProfileOptions, format_result, measure_on

        options = ProfileOptions(threads=threads, pin=pin, batch=batch, min_time_s=min_time_s)
        if layers:
            _show_layers(models, names, options)
            return
        found = measure_on(
            names, models, options=options, retries=retries, output=output, again=again
        )
        for result in found.results:
            show(format_result(result))
            if result.device in found.kept:
                show(f"{result.device}: measured before; --again measures anew")
        if found.failures:
            raise DeviceError("\n".join(failure.message for failure in found.failures))


def _show_layers(models: list[Path], names: list[str], options: ProfileOptions) -> None:
    from prune2deploy.latency import format_layers, profile_layers

    for name in names:
        show(*format_layers(profile_layers(models, device=name, options=options)))
