"""The Python packages that prune2deploy needs: which are here, which work."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from prune2deploy import progress
from prune2deploy.errors import MissingDependencyError

_CHILD = Path(__file__).with_name("child.py")
_TIMEOUT_S = 120
# Where the name to import is not the name to install.
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
_REQUIREMENT = re.compile(r"(?P<name>[\w.\-]+)(?P<wanted>[^;]*)(;.*extra == ['\"](?P<extra>\w+))?")


@dataclass(frozen=True)
class Package:
    """One required or optional package, as it was found."""

    name: str
    wanted: str  # such as ">=2.6"
    extra: str | None  # the extra that asks for it; None: always needed
    version: str | None  # None: not installed
    problem: str | None = None  # why it cannot be used, though it is installed
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it is installed, new enough, and can be imported."""
        return self.version is not None and self.problem is None


def find_packages() -> list[Package]:
    """Look for every package that prune2deploy declares, leaving out those for development.

    Raises:
        MissingDependencyError: prune2deploy itself is not installed.
    """
    try:
        declared = metadata.requires("prune2deploy") or []
    except metadata.PackageNotFoundError as err:
        raise MissingDependencyError(
            "prune2deploy runs from a folder and is not installed, so what it needs is not known. "
            f"Install it: {sys.executable} -m pip install -e PATH"
        ) from err
    requirements = [_REQUIREMENT.match(text) for text in declared]
    found = [
        Package(match["name"], match["wanted"].strip(), match["extra"], _version(match["name"]))
        for match in requirements
        if match and match["extra"] != "dev"
    ]
    outcomes = import_each(module_of(p.name) for p in found if p.version)
    return [_with_outcome(package, outcomes.get(module_of(package.name))) for package in found]


def module_of(package: str) -> str:
    """Return the name under which a package is imported."""
    return _MODULES.get(package, package.replace("-", "_"))


def import_each(modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Import modules in another process.

    Returns:
        Per module {"problem": text or None, "facts": {...}}.
    """
    waiting = list(modules)
    outcomes: dict[str, dict[str, Any]] = {}
    with progress.task("Importing packages", total=len(waiting)) as shown:
        while waiting:
            lines, ending = _run_child(waiting)
            for outcome in map(json.loads, lines):
                outcomes[outcome["module"]] = outcome
            if len(lines) < len(waiting):
                # The process ended within the next import; go on with those after it.
                outcomes[waiting[len(lines)]] = {"problem": ending, "facts": {}}
            done = min(len(lines) + 1, len(waiting))
            shown.advance(done)
            waiting = waiting[done:]
    return outcomes


def _run_child(modules: list[str]) -> tuple[list[str], str]:
    """Return the lines it answered, and how it ended."""
    command = [sys.executable, str(_CHILD), *modules]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as err:
        output = err.stdout or b""
        text = output.decode() if isinstance(output, bytes) else output
        return _whole_lines(text), f"importing it took longer than {_TIMEOUT_S} s"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return _whole_lines(done.stdout), f"importing it ends Python with {name}"
    return _whole_lines(done.stdout), f"importing it ends Python with code {done.returncode}"


def _whole_lines(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _with_outcome(package: Package, outcome: Mapping[str, Any] | None) -> Package:
    if outcome is None or package.version is None:
        return package
    problem = outcome["problem"]
    if problem is None and not new_enough(package.version, package.wanted):
        problem = f"too old: {package.wanted} is needed"
    return Package(
        package.name, package.wanted, package.extra, package.version, problem, outcome["facts"]
    )


def new_enough(version: str, wanted: str) -> bool:
    """Return whether a version meets a requirement of the form '>=1.2'; others count as met."""
    lowest = re.fullmatch(r">=([\d.]+)", wanted)
    return lowest is None or _numbers(version) >= _numbers(lowest[1])


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"[\d.]*", version)
    parts = [int(part) for part in (release[0] if release else "").split(".") if part]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
