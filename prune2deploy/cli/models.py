"""Commands that take a model: inspect, export, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show
from prune2deploy.cli.session import USER_ERROR, session, tell_error
from prune2deploy.cli.values import (
    ArgsOption,
    ClassesOption,
    InputOption,
    ModelArgument,
    parse_args,
    parse_cores,
    parse_shape,
)

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
            "--on",
            metavar="DEVICE",
            help="Device of devices.yaml; may be repeated. Left out: local, this machine.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the runtime. Left out: one per CPU of --cores, or the device's."
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="CPUs such as 2,3 or 4-7, one per thread, or auto. Left out: the device's.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per run, where the file leaves it open.")
    ] = None,
    min_time_s: Annotated[
        float, typer.Option("--min-time", metavar="SECONDS", help="Timed runs, for each model.")
    ] = 5.0,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a tainted measurement is tried again.")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep each result as DIR/latency/DEVICE.json, and measure only what is missing; "
            "with --layers as DIR/layers/DEVICE.json, anew each time.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what is kept in --output.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show instead how long each layer takes.")
    ] = False,
) -> None:
    """Time ONNX models on devices, all at once; two or more models are compared in turns.

    Exit code: 0, or 1 if a device could not be measured (the others' results are shown).
    """
    pin = parse_cores(cores)
    if threads is None and isinstance(pin, tuple):
        threads = len(pin)
    with session() as work:
        from prune2deploy.latency import (
            ProfileOptions,
            ProfileResult,
            ResultFolder,
            format_result,
            profile_devices,
        )

        devices = list(dict.fromkeys(on or ["local"]))
        options = ProfileOptions(threads=threads, pin=pin, batch=batch, min_time_s=min_time_s)
        if layers:
            from prune2deploy.latency import format_layers, keep_layers, profile_layers

            for name in devices:
                timed = profile_layers(models, device=name, options=options)
                show(*format_layers(timed))
                if output is not None:
                    show(f"Wrote {keep_layers(timed, output)}")
            return
        folder = None
        if output is not None:
            folder = ResultFolder(output, again, lambda text: typer.echo(text, err=True))
            work.kept = f"What was finished is kept in {folder.path / 'latency'}."
        done: dict[str, ProfileResult] = {}
        try:
            campaign = profile_devices(
                models,
                devices,
                options=options,
                retries=retries,
                folder=folder,
                finished=lambda result: done.update({result.device: result}),
            )
        finally:
            for result in (done[name] for name in devices if name in done):
                show(format_result(result))
                if result.attempts > 1:
                    show(f"{result.device}: the least tainted of {result.attempts} attempts")
    for failure in campaign.failures:
        tell_error(failure.message)
    if campaign.failures:
        raise typer.Exit(USER_ERROR)
