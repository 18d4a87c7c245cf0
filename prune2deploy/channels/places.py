"""Where in the model's own code an operator is called: file, line, and the modules around it."""

from __future__ import annotations

import functools
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent) + "/"
_OURS = str(Path(__file__).parent) + "/"
_MACHINERY = ("utils/", "_ops.py", "_compile.py", "_dynamo/", "_library/", "overrides.py")


@dataclass(frozen=True)
class Place:
    """One line of code that runs operators.

    line: the innermost line of the model's own code, as (file, number).
    inner: the line that calls the operator, which may lie inside PyTorch.
    modules: the modules whose methods are running, innermost first. They and what follows
        do not count in comparisons.
    names: per module the attribute names in the code of its running methods.
    """

    line: tuple[str, int]
    inner: tuple[str, int]
    function: str = field(compare=False)
    modules: tuple[nn.Module, ...] = field(compare=False)
    names: tuple[tuple[str, ...], ...] = field(compare=False)

    def __str__(self) -> str:
        """For a reader: file:line, the method, and what is written there."""
        file, number = self.line
        source = linecache.getline(file, number).strip()
        return f"{_short(file)}:{number} in {self.function}" + (f", `{source}`" if source else "")


NOWHERE = Place(("", 0), ("", 0), "", (), ())


def here() -> Place:
    """The place of the operator that is running now."""
    return _place(_outwards(sys._getframe(1)))


def place_of(trace: TracebackType | None) -> Place:
    """The place that raised an exception."""
    return _place(iter(_raising(trace)))


def raising_frames(trace: TracebackType | None) -> list[FrameType]:
    """Frames of the model's code and of PyTorch's that an exception went through.

    Innermost first; they end where our own call of the model begins.
    """
    frames: list[FrameType] = []
    for frame, _ in _raising(trace):
        if not _is_ours(frame.f_code.co_filename):
            frames.append(frame)
        elif frames:
            break
    return frames


def _raising(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames[::-1]


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _place(frames: Iterator[tuple[FrameType, int]]) -> Place:
    inner: tuple[str, int] | None = None
    line: tuple[str, int] | None = None
    function = ""
    modules: list[nn.Module] = []
    names: list[tuple[str, ...]] = []
    for frame, number in frames:
        code = frame.f_code
        file = code.co_filename
        if _is_ours(file):
            if line is not None or modules:
                break  # the trace's own call of the model: what lies further out is the user's
            inner = None  # PyTorch computes some shapes in Python, inside the operator
            continue
        if _is_machinery(file):
            continue
        if inner is None:
            inner = (file, number)
        if line is None and not file.startswith(_TORCH):
            line, function = (file, number), code.co_qualname
        if code.co_argcount:
            # A method's first argument, whatever it is called.
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, nn.Module):
                modules.append(owner)
                names.append(code.co_names)
    if inner is None:
        return NOWHERE
    if line is None:
        line, function = inner, type(modules[0]).__name__ if modules else ""
    return Place(line, inner, function, tuple(modules), tuple(names))


@functools.cache
def _is_ours(file: str) -> bool:
    return file.startswith(_OURS)


@functools.cache
def _is_machinery(file: str) -> bool:
    """Files of PyTorch that stand between a model's code and every operator."""
    if not file.startswith(_TORCH):
        return False
    inside = file[len(_TORCH) :]
    return inside.startswith(
        ("utils/", "_ops.py", "_compile.py", "_dynamo/", "_library/", "overrides.py")
    )


def _short(file: str) -> str:
    """The last two parts of a path: enough to find the file, and the same on every machine."""
    return "/".join(Path(file).parts[-2:])
