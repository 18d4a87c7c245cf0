"""Commands about the machines that models are measured on: devices list, add, check and others."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show, table
from prune2deploy.cli.session import USER_ERROR, session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prune2deploy.devices import LocalSettings, SshSettings
    from prune2deploy.devices.check import Check
    from prune2deploy.devices.disturbances import Finding

devices = typer.Typer(
    no_args_is_help=True, help="The machines that models are measured on: boards behind SSH."
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name in devices.yaml.")]


@devices.command("list")
def list_devices() -> None:
    """List the known devices, and the files they are looked for in."""
    with session():
        from prune2deploy.devices import device_files, file_of, load_devices

        known = load_devices()
        rows = [_row(name, settings, file_of(name)) for name, settings in known.items()]
        headings = ("name", "kind", "where", "runtime", "threads", "from")
        show(table(headings, rows), "Looked for in, the first counts most:")
        for path in device_files():
            show(f"  {path}{'' if path.is_file() else ' (not there)'}")


def _row(
    name: str, settings: LocalSettings | SshSettings, path: Path | None
) -> tuple[str, str, str, str, str, str]:
    from prune2deploy.devices import SshSettings

    where = "this machine"
    if isinstance(settings, SshSettings):
        where = settings.host if settings.user is None else f"{settings.user}@{settings.host}"
        where += "" if settings.port is None else f":{settings.port}"
    origin = "always there" if path is None else os.path.relpath(path)
    if origin.startswith(".."):
        origin = str(path)
    return name, settings.kind, where, settings.runtime, str(settings.threads), origin


@devices.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="How you will call it.")],
    host: Annotated[
        str, typer.Option(help="[USER@]HOST: a name, an address or a Host of ~/.ssh/config.")
    ],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of its sshd.")] = None,
    user: Annotated[str | None, typer.Option(help="User to log in as.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key, if not the agent's.")
    ] = None,
    known_hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Host keys, if not ~/.ssh/known_hosts.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Python there that has the runtime.")] = None,
    folder: Annotated[str | None, typer.Option(help="Where files are kept there.")] = None,
    runtime: Annotated[str | None, typer.Option(help="What runs the models there.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")] = None,
    cores: Annotated[
        str | None, typer.Option(metavar="N,N", help="CPUs to run on, one per thread.")
    ] = None,
    power_mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="nvpmodel mode a Jetson must be in.")
    ] = None,
    for_all: Annotated[
        bool, typer.Option("--global", help="Write your own devices.yaml, not this folder's.")
    ] = False,
) -> None:
    """Write a device into devices.yaml. Only keys are used to log in, never passwords."""
    user, host = _user_and_host(user, host)
    numbers = None if cores is None else _numbers(cores)
    with session():
        from prune2deploy.devices import add_device, device_files, user_file

        path = user_file() if for_all else device_files()[0]
        entry: dict[str, Any] = {
            "kind": "ssh",
            "host": host,
            "port": port,
            "user": user,
            "key": _seen_from_file(key, for_all),
            "known_hosts": _seen_from_file(known_hosts, for_all),
            "python": python,
            "folder": folder,
            "runtime": runtime,
            "threads": threads,
            "cores": numbers,
            "power_mode": power_mode,
        }
        add_device(path, name, {what: value for what, value in entry.items() if value is not None})
        show(f"Added '{name}' to {path}", f"Try it out with: prune2deploy devices check {name}")


def _user_and_host(user: str | None, host: str) -> tuple[str | None, str]:
    """Take "pi@raspberrypi.local" apart."""
    before, at, after = host.rpartition("@")
    if not at:
        return user, host
    if user is not None or not before or ":" in before:
        raise typer.BadParameter(
            f"'{host}' should be USER@HOST without a password, or HOST with --user beside it; only "
            "keys are used to log in",
            param_hint="--host",
        )
    return before, after


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"'{text}' should be numbers of CPUs, such as 2,3", param_hint="--cores"
        )
    return [int(part) for part in parts]


def _seen_from_file(path: Path | None, for_all: bool) -> str | None:
    """A relative path in devices.yaml is seen from the file's folder, here from this one."""
    if path is None or not for_all or str(path).startswith("~"):
        return None if path is None else str(path)
    return str(path.absolute())


@devices.command()
def check(name: NameArgument) -> None:
    """Connect, and say what the device is, what it can run and what would disturb it."""
    with session():
        from prune2deploy.devices import load_devices
        from prune2deploy.devices.setup import check_device

        found = check_device(name, load_devices())
        show(*_checked(name, found))
    if not found.can_measure:
        raise typer.Exit(USER_ERROR)


def _checked(name: str, found: Check) -> list[RenderableType]:
    lines: list[RenderableType] = [
        _prose(f"{name}: {found.description}", 0),
        table(("there", ""), found.details),
        table(
            ("runtime", "", "versions, or how to get it"),
            [
                (
                    one.name,
                    "no" if one.versions is None else "yes",
                    one.versions or one.advice or "",
                )
                for one in found.runtimes
            ],
        ),
    ]
    if found.findings:
        lines.append("What would disturb a measurement there:")
    else:
        lines.append("Nothing was found that would disturb a measurement there.")
    for number, finding in enumerate(found.findings, 1):
        lines += _finding(number, finding)
    lines += [_prose(f"Cannot measure there. {text}", 0) for text in found.obstacles]
    if found.can_measure:
        also = ", disturbed as it is" if found.findings else ""
        lines.append(f"Models can be measured on {name}{also}.")
    return lines


def _finding(number: int, finding: Finding) -> list[RenderableType]:
    return [
        _prose(f"{number}. {finding.found}", 2),
        _prose(finding.why, 5),
        _prose(finding.advice, 5),
        # Never wrapped, so that it can be copied.
        *(f"       {command}" for command in finding.commands),
    ]


def _prose(text: str, indent: int) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text), (0, 0, 0, indent), expand=False)


@devices.command()
def setup(
    name: NameArgument,
    write: Annotated[
        bool, typer.Option("--write", help="Then have devices.yaml use its Python.")
    ] = False,
) -> None:
    """Make a virtual environment on the device, and install numpy and the runtime into it."""
    with session() as work:
        from prune2deploy.devices import file_of, load_devices, set_key
        from prune2deploy.devices.setup import set_up

        known = load_devices()
        work.kept = "What was installed on the device is kept; run it again to go on."
        done = set_up(name, known)
        made = "Made" if done.created else "Found"
        show(f"{made} the environment of {done.python}, with {' and '.join(done.packages)}")
        show(*(f"  {one.name}: {one.versions}" for one in done.check.runtimes if one.versions))
        path = file_of(name)
        if str(getattr(known[name], "python", "")) == done.python:
            show(f"{path} uses it already.")
        elif write and path is not None:
            set_key(path, name, "python", done.python)
            show(f"Set `python: {done.python}` for '{name}' in {path}")
        else:
            show(f"To use it, set this for '{name}' in {path}, or run this with --write:")
            show(f"    python: {done.python}")
        show(*(_prose(text, 0) for text in done.check.obstacles))
    if not done.check.can_measure:
        raise typer.Exit(USER_ERROR)


@devices.command("shell-test")
def shell_test(name: NameArgument) -> None:
    """Go through a measurement step by step; the first step that fails ends it."""
    with session():
        from prune2deploy.devices import load_devices
        from prune2deploy.devices.shell_test import ShellTest
        from prune2deploy.errors import DeviceError

        tick, cross = _marks()
        with ShellTest(name, load_devices()) as test:
            for number, (label, step) in enumerate(test.steps, 1):
                start = time.perf_counter()
                try:
                    with progress.task(f"{number} of {len(test.steps)}: {label}"):
                        said = step()
                except DeviceError:
                    show(f"{cross} {label}")
                    raise
                took = f"{time.perf_counter() - start:.1f} s"
                show(f"{tick} {label} ({took})", *([_prose(said, 4)] if said else []))
        show(f"All that a measurement on {name} needs works.")


def _marks() -> tuple[str, str]:
    """For done and failed, in letters that the output has."""
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok", "failed:"
    return "✓", "✗"
