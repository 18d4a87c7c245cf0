"""Exit codes and messages: whatever happens, a person learns what to do."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from prune2deploy.cli.session import session
from prune2deploy.errors import DataError

Terminal = Callable[..., tuple[int, str]]


def outcome(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def command() -> None:
        with session() as work:
            work.kept = "The folder runs/x is kept."
            raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    printed = capsys.readouterr()
    assert printed.out == ""
    return caught.value.exit_code, printed.err


def test_what_the_user_can_mend_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(DataError("a.png is [no] image"), capsys) == (1, "error: a.png is [no] image\n")


def test_an_interrupt_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyboardInterrupt(), capsys) == (
        130,
        "interrupted. The folder runs/x is kept.\n",
    )


def test_a_full_disk_is_named_with_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(OSError(errno.ENOSPC, "No space left on device", "/big/x.onnx"), capsys)
    assert code == 1
    assert "the disk is full, while writing /big/x.onnx" in text


def test_a_used_up_quota_is_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), capsys)
    assert code == 1
    assert "the disk is full, while writing /x" in text


def test_a_full_disk_is_found_behind_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    outer = RuntimeError("cannot serialize")
    outer.__cause__ = ValueError("I/O error: No space left on device (os error 28)")
    code, text = outcome(outer, capsys)
    assert code == 1
    assert "the disk is full" in text


def test_a_missing_permission_names_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(PermissionError(errno.EACCES, "denied", "/etc/x"), capsys)
    assert code == 1
    assert "no permission for /etc/x" in text


def test_warnings_are_shown_and_logged_errors_are_not_told_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("prune2deploy.somewhere")
    with session():
        logger.warning("%s images left out", 3)
        logger.error("stopped")
    logger.warning("after the command")
    shown = capsys.readouterr().err
    assert shown.startswith("warning: 3 images left out\n")
    assert shown.count("warning:") == 1
    assert "stopped" not in shown


def test_our_own_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), session():
        raise ZeroDivisionError


def test_a_bug_shows_a_traceback_and_a_user_error_does_not() -> None:
    program = """\
import sys
import prune2deploy.recipe
from prune2deploy.cli import main
def schema():
    raise {error}
prune2deploy.recipe.recipe_schema = schema
sys.argv = ["prune2deploy", "schema"]
main()
"""

    def run(error: str) -> subprocess.CompletedProcess[str]:
        code = program.format(error=error)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    bug = run("ZeroDivisionError('ours')")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert "ZeroDivisionError: ours" in bug.stderr
    user = run("__import__('prune2deploy.errors').errors.RecipeError('yours')")
    assert (user.returncode, user.stderr, user.stdout) == (1, "error: yours\n", "")


def test_ctrl_c_on_a_terminal_ends_with_130(
    on_terminal: Terminal, environment: dict[str, str]
) -> None:
    program = """\
import os, signal, time
import typer
from prune2deploy import progress
from prune2deploy.cli.session import session
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def work():
    with session(), progress.task("Training", 5) as task:
        time.sleep(0.8)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
app()
"""
    code, shown = on_terminal(program, environment)
    assert code == 130
    assert shown.endswith("interrupted. Nothing was changed.\r\n")
    assert "\x1b[?25h" in shown  # the cursor is back
    assert "Traceback" not in shown
