"""Python files of the user: import them, and say where in them an error arose."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from prune2deploy.errors import ModelError, Prune2DeployError, nearest_name_hint

_MACHINERY = (Path(__file__).resolve().parent.parent, Path(torch.__file__).resolve().parent)
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_MESSAGE_LENGTH = 600


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let code in the with-block import its neighbours in `folder`, as a script there could."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        # The user's code may have changed the list, so not simply the first entry.
        if entry in sys.path:
            sys.path.remove(entry)


def split_spec(spec: str, base_dir: Path) -> tuple[Path, str]:
    """Split "path/to/file.py:name" into an absolute path (relative to `base_dir`) and the name."""
    file_text, _, name = spec.rpartition(":")
    return (base_dir / Path(file_text).expanduser()).resolve(), name


def import_from_file(
    spec: str, base_dir: Path, *, error: type[Prune2DeployError] = ModelError
) -> Any:
    """Return one name out of a Python file.

    The same unchanged file is executed once per process, so that its classes keep
    their identity when a model and a task come from one file.

    Args:
        spec: "path/to/file.py:name"; a relative path starts at `base_dir`.
        error: what to raise, for rooms whose users think of the file as a task or data.

    Raises:
        error: no such file, the file fails when it is imported (with its line), or it
            does not define the name.
    """
    path, name = split_spec(spec, base_dir)
    if path.suffix != ".py" or not name.isidentifier():
        raise error(
            f"'{spec}' does not name something in a Python file. "
            "Expected 'path/to/file.py:name', for example 'model.py:build'."
        )
    if not path.is_file():
        raise error(
            f"'{spec}': there is no file {path}. Relative paths start at the recipe's folder."
        )
    module = _execute(path, error)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise error(f"{path} does not define '{name}'. {nearest_name_hint(name, public)}")
    return getattr(module, name)


def _execute(path: Path, error: type[Prune2DeployError]) -> ModuleType:
    stat = path.stat()
    identity = f"{path}:{stat.st_mtime_ns}:{stat.st_size}"
    # Unique, or a user's "model.py" would stand in for any other module called "model".
    unique_name = f"prune2deploy_user_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if unique_name in sys.modules:
        return sys.modules[unique_name]
    module_spec = importlib.util.spec_from_file_location(unique_name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Registered before it runs: dataclasses and typing look their module up there.
    sys.modules[unique_name] = module
    try:
        with importable(path.parent):
            module_spec.loader.exec_module(module)
    except BaseException as err:
        del sys.modules[unique_name]
        # SystemExit too: a script that reads the command line on import would end this one.
        if isinstance(err, (Exception, SystemExit)):
            raise error(
                f"{path} could not be imported: {explain(err)}. "
                "The file must import without arguments and without starting work: "
                "keep that under 'if __name__ == \"__main__\":'."
            ) from err
        raise
    return module


def explain(err: BaseException) -> str:
    """Return the error's type and message, and the line of the user's code it came from.

    "The user's code" is the innermost frame that is neither PyTorch's nor this
    package's; code of other installed packages counts only where there is no other.
    """
    if isinstance(err, SyntaxError):
        return f"SyntaxError: {err.msg} ({err.filename}, line {err.lineno})"
    text = f"{type(err).__name__}: {shorten(str(err))}".rstrip(": ")
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not _is_machinery(f.filename)]
    if not frames:
        return text
    frame = ([f for f in frames if not _is_installed(f.filename)] or frames)[-1]
    return f"{text} ({frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line})"


def _is_machinery(filename: str) -> bool:
    # "<frozen importlib>" and code generated while a model is traced.
    return filename.startswith("<") or any(map(Path(filename).is_relative_to, _MACHINERY))


def _is_installed(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(_STANDARD_LIBRARY) or not {
        "site-packages",
        "dist-packages",
    }.isdisjoint(path.parts)


def shorten(message: str) -> str:
    """Return the first paragraph of a long message; PyTorch adds pages of advice."""
    first = message.strip().split("\n\n")[0]
    return first if len(first) <= _MESSAGE_LENGTH else first[:_MESSAGE_LENGTH] + " …"
