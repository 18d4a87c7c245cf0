"""The command build: an engine from an ONNX file, on the device that will run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli.output import show
from prune2deploy.cli.session import session


def build(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="fp32, fp16 or int8, as it will run.")
    ],
    on: Annotated[
        str, typer.Option("--on", metavar="DEVICE", help="Where: a device with TensorRT.")
    ] = "local",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also copy the engine here.  [default: stays there]"),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="tensorrt or tensorrt_rtx.  [default: the device's runtime]"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Images per run, where the file leaves it open."),
    ] = None,
    capabilities: Annotated[
        str | None,
        typer.Option(
            metavar="SM86,SM89", help="GPUs to build for, with TensorRT-RTX and none here."
        ),
    ] = None,
    dla: Annotated[int | None, typer.Option(min=0, help="DLA core of a Jetson.")] = None,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Let kernels use the 2:4 pattern of the weights.")
    ] = False,
    workspace_mb: Annotated[
        int | None, typer.Option(min=1, help="Memory that building may use.")
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of layers that must compute as the file says."),
    ] = 0.5,
) -> None:
    """Build a TensorRT engine from an ONNX file, and prove in which precision it computes."""
    sizes = parse_batch(batch)
    with session():
        from prune2deploy.latency.engines import BuildOptions, build_engine, format_engine

        options = BuildOptions(
            runtime=runtime,
            batch=sizes,
            capabilities=tuple(capabilities.split(",")) if capabilities else (),
            dla=dla,
            sparse=sparse,
            workspace_mb=workspace_mb,
            min_share=min_share,
        )
        show(*format_engine(build_engine(model, device=on, options=options, output=output)))


def parse_batch(text: str | None) -> tuple[int, int, int] | None:
    """Read '1,4,16'.

    Raises:
        typer.BadParameter: it is not three whole numbers in ascending order.
    """
    if text is None:
        return None
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) != 3 or len(numbers) != 3 or not 0 < numbers[0] <= numbers[1] <= numbers[2]:
        raise typer.BadParameter(
            f"'{text}' should be the fewest, the usual and the most images, such as 1,4,16",
            param_hint="--batch",
        )
    return numbers[0], numbers[1], numbers[2]
