"""Values of options that are more than one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

Shape = tuple[int, int, int]

MODEL_HELP = (
    "Where the model comes from: torchvision:NAME, timm:NAME, cifar:resnet56, digits:convnet "
    "or path/to/model.py:function."
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ArgsOption = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="Argument for the function that builds it."),
]
InputOption = Annotated[
    str | None,
    typer.Option("--input", metavar="C,H,W", help="Shape of one input.  [default: the usual]"),
]
ClassesOption = Annotated[
    int | None, typer.Option("--classes", min=1, help="Number of classes the model tells apart.")
]


def parse_shape(text: str | None, model: str) -> Shape:
    """Read '3,224,224' (or with x), or take the usual shape of the model source.

    Raises:
        typer.BadParameter: it is not three whole numbers above 0.
    """
    from prune2deploy.recipe.sources import default_input_shape

    if text is None:
        return default_input_shape(model)
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"'{text}' should be channels,height,width, such as 3,224,224",
            param_hint="--input",
        )
    channels, height, width = map(int, parts)
    return channels, height, width


def parse_args(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE pairs, the values in YAML.

    Raises:
        typer.BadParameter: one of them is not such a pair.
    """
    from prune2deploy.recipe.overrides import OverrideError, apply_override, parse_override

    args: dict[str, Any] = {}
    for pair in pairs or ():
        try:
            apply_override(args, parse_override(pair))
        except OverrideError as err:
            raise typer.BadParameter(
                str(err).replace("--set", "--arg"), param_hint="--arg"
            ) from err
    return args


def parse_cores(text: str | None) -> tuple[int, ...] | Literal["auto", "device"]:
    """Read a list of CPUs such as '2,3' or '4-7', or 'auto'; None: as the device has it.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if text is None:
        return "device"
    if text == "auto":
        return "auto"
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise typer.BadParameter(
                f"'{text}' should be CPUs such as 2,3 or 4-7, or auto", param_hint="--cores"
            )
        cores += range(int(first), int(last) + 1)
    return tuple(cores)
