"""What surrounds every command: progress on show, warnings in words, errors as exit codes."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from prune2deploy import progress
from prune2deploy.cli.progress import Display, display
from prune2deploy.errors import Prune2DeployError
from prune2deploy.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

USER_ERROR = 1
GATE_FAILED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def _silent(text: str) -> None:
    pass


def _unseen(picture: Callable[[], RenderableType]) -> AbstractContextManager[bool]:
    return nullcontext(False)


@dataclass
class Session:
    """A command at work.

    say: shows a line on standard error, apart from the progress. pinned: keeps a picture on show
    where there is a terminal. kept: said on Ctrl-C, what remains of the work.
    """

    say: Callable[[str], None] = _silent
    pinned: Callable[[Callable[[], RenderableType]], AbstractContextManager[bool]] = _unseen
    kept: str = "Nothing was changed."


@contextmanager
def session() -> Iterator[Session]:
    """Run a command's work: what the user can mend becomes one message and exit code 1.

    Raises:
        typer.Exit: with the exit code. Errors of our own pass through, with their traceback.
    """
    work = Session()
    try:
        with display() as shown, progress.use(shown), _warnings_on(shown):
            work.say, work.pinned = shown.say, shown.pinned
            yield work
    except Prune2DeployError as err:
        raise _fail(str(err)) from err
    except KeyboardInterrupt as err:
        # A terminal has just shown ^C, without a line end.
        start = "\n" if sys.stderr.isatty() else ""
        typer.echo(f"{start}interrupted. {work.kept}", err=True)
        raise typer.Exit(INTERRUPTED) from err
    except Exception as err:
        message = _trouble_with_files(err)
        if message is None:
            raise
        raise _fail(message) from err


def tell_error(message: str) -> None:
    """Print an error where more is to be said than one exception can."""
    typer.echo(printable(f"error: {message}"), err=True)


def _fail(message: str) -> typer.Exit:
    """Print an error and return what to raise."""
    tell_error(message)
    return typer.Exit(USER_ERROR)


def _trouble_with_files(err: BaseException) -> str | None:
    """Return a message if the cause is a full disk or a missing permission, else None."""
    cause: BaseException | None = err
    while cause is not None:
        # Some writers (safetensors, torch) put the system's error in a text of their own.
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(cause):
            where = getattr(cause, "filename", None)
            return (
                f"the disk is full{f', while writing {where}' if where else ''}. Free some space, "
                "or name a folder on another disk with --output. What was finished is kept."
            )
        if isinstance(cause, PermissionError):
            return (
                f"no permission for {cause.filename or 'a file'}. Change its permissions, "
                "or use another path."
            )
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _warnings_on(shown: Display) -> Iterator[None]:
    handler = _Handler(shown)
    logger = logging.getLogger("prune2deploy")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    """Shows warnings without disturbing the progress bars."""

    def __init__(self, shown: Display) -> None:
        super().__init__(logging.WARNING)
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning. Errors are logged for the log file, and raised: they are told once."""
        if record.levelno == logging.WARNING:
            self._shown.say(f"warning: {record.getMessage()}")
