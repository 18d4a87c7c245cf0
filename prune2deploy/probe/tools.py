"""Small programs that come with a system or a board, such as vcgencmd."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path

LIMIT_S = 2.0
_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")
_hung: set[str] = set()  # what once took longer than the limit: waiting again would not help


def find_tool(name: str, root: Path = Path("/")) -> str | None:
    """Return the path of a program, or None; under another root only that tree is searched."""
    # A connection over SSH often has no sbin on its path.
    folders = [str(root / folder) for folder in _FOLDERS]
    if root == Path("/"):
        folders.insert(0, os.environ.get("PATH", os.defpath))
    return shutil.which(name, path=os.pathsep.join(folders))


def tool_output(root: Path, name: str, *arguments: str, limit_s: float = LIMIT_S) -> str | None:
    """Return what a program printed, or None: it is not there, failed or took too long."""
    path = find_tool(name, root)
    process = _start(path, arguments)
    if path is None or process is None:
        return None
    with process:
        try:
            text, _ = process.communicate(timeout=limit_s)
        except BaseException as err:
            _kill(process)
            if not isinstance(err, subprocess.TimeoutExpired):
                raise
            _hung.add(path)
            return None
    return text.strip() if process.returncode == 0 and text.strip() else None


def first_line(root: Path, name: str, *arguments: str, limit_s: float = LIMIT_S) -> str | None:
    """Return the first line of a program that goes on until it is killed, or None as above."""
    path = find_tool(name, root)
    process = _start(path, arguments)
    if path is None or process is None:
        return None
    with process:
        try:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], limit_s)[0]:
                _hung.add(path)
                return None
            return process.stdout.readline().strip() or None
        finally:
            _kill(process)


def _start(path: str | None, arguments: tuple[str, ...]) -> subprocess.Popen[str] | None:
    if path is None or path in _hung:
        return None
    try:
        return subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # so that what it started itself ends with it
        )
    except OSError:
        return None


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
