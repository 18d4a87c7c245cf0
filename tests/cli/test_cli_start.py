"""How the program starts: fast, with nothing heavy, plain in a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from prune2deploy import __version__
from prune2deploy.cli import app

HEAVY = {
    "torch",
    "torchvision",
    "lightning_fabric",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "numpy",
    "scipy",
    "sklearn",
    "PIL",
    "pydantic",
    "yaml",
    "timm",
    "tensorrt",
    "ray",
    "rich",
}
COMMANDS = ["run", "check", "init", "inspect", "export", "profile", "methods", "schema", "doctor"]
COMMANDS += ["devices", "build", "explain", "runs", "sweep", "report", "verify", "sign", "compare"]
MAIN = "from prune2deploy.cli import main; main()"


def python(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=env, timeout=60
    )


def loaded(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after some code."""
    done = python("-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)")
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_importing_the_cli_loads_no_heavy_package() -> None:
    assert HEAVY & loaded("import prune2deploy.cli") == set()


def test_help_loads_nothing_heavy_but_rich() -> None:
    code = f"import sys; sys.argv = ['p', '--help']\ntry:\n    {MAIN}\nexcept SystemExit: pass"
    assert HEAVY & loaded(code) <= {"rich"}


def test_doctor_needs_nothing_beyond_python_to_be_imported() -> None:
    assert HEAVY & loaded("import prune2deploy.doctor") == set()


def test_all_commands_are_there() -> None:
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)  # type: ignore[attr-defined]


def test_version(environment: dict[str, str]) -> None:
    done = python("-c", MAIN, "--version", env=environment)
    assert (done.returncode, done.stdout) == (0, f"prune2deploy {__version__}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(call: Callable[..., Result], command: str) -> None:
    result = call(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["methods", "chip"], ["nothing"]])
def test_a_pipe_gets_no_escape_codes(environment: dict[str, str], arguments: list[str]) -> None:
    done = python("-c", MAIN, *arguments, env=environment)
    assert done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_tables_are_not_squeezed_in_a_pipe(environment: dict[str, str]) -> None:
    table = python("-c", MAIN, "methods", env=environment).stdout
    rows = [line for line in table.splitlines() if re.match(r" ?(ccprune|chip|l1|network_)", line)]
    assert len(rows) == 4


def test_an_encoding_without_the_letters_is_no_error(environment: dict[str, str]) -> None:
    done = python("-c", MAIN, "methods", env={**environment, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "chip" in done.stdout


def test_a_reader_that_goes_away_is_no_error(environment: dict[str, str]) -> None:
    command = f"{sys.executable} -c '{MAIN}' schema | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_the_installed_program_runs(environment: dict[str, str]) -> None:
    program = Path(sys.executable).with_name("prune2deploy")
    if not program.exists():
        pytest.skip("prune2deploy is not installed beside this Python")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment)
    assert done.stdout == f"prune2deploy {__version__}\n"
