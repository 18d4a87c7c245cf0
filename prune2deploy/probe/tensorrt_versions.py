"""TensorRT 8.5 to 11 and TensorRT-RTX: what each version has, and what its messages mean."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from .job import Refusal

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
PRECISIONS = ("fp32", "fp16", "int8")
OLDEST = (8, 5)
# Before it, the library can be given a typed graph but does not build all of them (NVIDIA calls
# strong typing complete from here on).
TYPING_COMPLETE = (10, 12)

_HOW_TO_GET = {
    "tensorrt": "On a Jetson it comes with JetPack: make the virtual environment with "
    "--system-site-packages. On x86 install it with: {python} -m pip install tensorrt",
    "tensorrt_rtx": "It exists for x86-64 with GeForce RTX and RTX PRO GPUs; install it with: "
    "{python} -m pip install tensorrt-rtx",
}

# What the library says, and what it means. Groups are filled into the words.
_MEANINGS = (
    (
        r"not compatible with this version of TensorRT, expecting library version (\S+) got "
        r"([\w.]*\w)",
        "the engine was built by TensorRT {1} and this is {0}; an engine runs only where the "
        "version is the same to the last number",
    ),
    (
        r"generated on an incompatible device, expecting compute (\S+) got compute ([\w.]*\w)",
        "the engine was built on a GPU of compute capability {1} and this one has {0}",
    ),
    (
        r"incompatible serialization version|magicTag",
        "the file is no engine, or one of another kind of TensorRT",
    ),
    (
        r"Target GPU SM (\d+) is not supported by this TensorRT release",
        "this build of TensorRT does not know a GPU of SM {0}; on a Jetson use the one that "
        "JetPack brings, not that of the package index",
    ),
    (
        r"cudaError 35|CUDA driver version is insufficient",
        "there is no NVIDIA driver here, or it is too old",
    ),
)


def load_tensorrt(name: str) -> Any:
    """Return the module `tensorrt` or `tensorrt_rtx`.

    Raises:
        Refusal: "no_runtime": it is not there or too old; "bad_job": no such name.
    """
    if name not in NAMES:
        raise Refusal("bad_job", f"no TensorRT is called '{name}'; known: {', '.join(NAMES)}")
    how = _HOW_TO_GET[name].format(python=sys.executable)
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as err:  # OSError: a library that it loads itself
        raise Refusal(
            "no_runtime", f"{sys.executable} cannot import {NAMES[name]} ({err}). {how}"
        ) from err
    if not is_rtx(trt) and version_of(trt) < OLDEST:
        raise Refusal(
            "no_runtime",
            f"TensorRT {trt.__version__} is too old; expected 8.5 or newer. A Jetson needs "
            "JetPack 5.1 or newer for it",
        )
    return trt


def is_rtx(trt: Any) -> bool:
    """Whether this module is TensorRT-RTX, which has version numbers of its own."""
    return str(trt.__name__) == "tensorrt_rtx"


def version_of(trt: Any) -> tuple[int, ...]:
    """Return the version as numbers: (10, 3, 0, 26)."""
    return tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__))[:4])


def only_typed(trt: Any) -> bool:
    """Whether the library takes precisions from the graph alone: 11 and newer, and RTX."""
    return is_rtx(trt) or version_of(trt) >= (11,)


def member_name(value: Any) -> str:
    """Return the name of a member of one of the library's enumerations."""
    return str(value).rpartition(".")[2]


def routes(trt: Any, precision: str, held: str, dla: bool = False) -> list[str]:
    """Return the ways to an engine of this precision, best first: "typed", "flags" or "plain".

    typed: the graph says it all. flags: the builder is told which precisions it may use. plain:
    neither is needed.

    Args:
        precision: what is asked for.
        held: what the ONNX file holds, of the same names.
        dla: for the deep learning accelerator, which takes no typed graph before 11.

    Raises:
        Refusal: "not_as_asked", where no engine could have this precision.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise Refusal("bad_job", f"no precision is called '{precision}'; known: {known}")
    name = f"{NAMES[trt.__name__]} {trt.__version__}"
    if precision != held and not (precision == "fp16" and held == "fp32" and not only_typed(trt)):
        # 11 would build it all the same, in the precision that the file has.
        remedy = {
            "fp32": "Give the fp32 file",
            "fp16": f"{name} takes precisions from the file alone: convert it to fp16 first"
            if held == "fp32"
            else "Give an fp16 file, or ask for what the file holds",
            "int8": "Quantize the file first, with QuantizeLinear and DequantizeLinear in it",
        }[precision]
        raise Refusal(
            "not_as_asked", f"{precision} was asked for, the ONNX file holds {held}. {remedy}"
        )
    if precision == "fp32":
        return ["plain"]
    if only_typed(trt):
        return ["typed"]
    typed = version_of(trt) >= (10,) and precision == held == "fp16" and not dla
    if not typed:
        return ["flags"]
    return ["typed"] if version_of(trt) >= TYPING_COMPLETE else ["typed", "flags"]


def network_flags(trt: Any, route: str) -> int:
    """Return the flags to create a network with."""
    flag = trt.NetworkDefinitionCreationFlag
    if not is_rtx(trt) and version_of(trt) < (10,):
        return 1 << int(flag.EXPLICIT_BATCH)
    return 1 << int(flag.STRONGLY_TYPED) if route == "typed" else 0


def precision_flags(trt: Any, route: str, precision: str, half_tensors: bool) -> list[Any]:
    """Return the builder flags of the route "flags", as members; none for the others.

    half_tensors: whether the file has fp16 tensors, which an int8 one may have as well.
    """
    if route != "flags":
        return []
    found = [trt.BuilderFlag.INT8] if precision == "int8" else []
    if precision == "fp16" or half_tensors:
        found.append(trt.BuilderFlag.FP16)
    return found


def check_options(trt: Any, options: dict[str, Any]) -> None:
    """Refuse options that this version does not have; none is left out in silence."""
    name, version = f"{NAMES[trt.__name__]} {trt.__version__}", version_of(trt)
    if options["optimization_level"] is not None and not is_rtx(trt) and version < (8, 6):
        _refuse(f"{name} has no optimization level; it came with 8.6. Leave it out")
    if options["capabilities"] and not is_rtx(trt):
        _refuse(f"{name} builds for the GPU it runs on; capabilities are for TensorRT-RTX")
    if options["dla"] is None:
        return
    if is_rtx(trt) or (11,) <= version < (11, 4, 1):
        _refuse(f"{name} has no DLA; TensorRT 8.5 to 10 have it, and 11.4.1 on an AGX Orin")
    if options["precision"] == "fp32":
        _refuse("the DLA computes in fp16 and int8; ask for one of these, or leave the DLA out")


def _refuse(message: str) -> None:
    raise Refusal("not_as_asked", message)


def logger_of(trt: Any) -> Any:
    """Return a logger that keeps warnings and errors in `messages`, and shows them as well."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = member_name(severity)
            if level in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                self.messages.append(message)
                sys.stderr.write(f"{NAMES[trt.__name__]}, {level.lower()}: {message}\n")

    return Logger()


def meaning(messages: list[str]) -> str | None:
    """Return in words what the library's messages say, or None where none is known."""
    for pattern, words in _MEANINGS:
        for message in messages:
            found = re.search(pattern, message)
            if found:
                return words.format(*found.groups())
    return None


def said(messages: list[str], most: int = 3) -> str:
    """Return what the library said, for the end of a message: its meaning, and its last words."""
    words = meaning(messages)
    tail = " | ".join(" ".join(message.split()) for message in messages[-most:])
    if not tail:
        return "the library gave no reason"
    return f"{words} (it said: {tail})" if words else tail
