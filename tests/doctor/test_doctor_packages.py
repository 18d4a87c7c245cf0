from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from prune2deploy.doctor import packages
from prune2deploy.doctor.packages import find_packages, import_each, module_of, new_enough
from prune2deploy.errors import MissingDependencyError


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which other processes import, too."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_each_import_is_judged_by_itself(modules: Path) -> None:
    (modules / "p2d_good.py").write_text("print('hello')")
    (modules / "p2d_bad.py").write_text("1 / 0")
    (modules / "p2d_crash.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    (modules / "p2d_exit.py").write_text("import os\nos._exit(4)")
    (modules / "p2d_leave.py").write_text("import sys\nsys.exit(0)")
    names = ["p2d_good", "p2d_bad", "p2d_crash", "p2d_exit", "p2d_leave", "p2d_none", "json"]
    problems = {name: found["problem"] for name, found in import_each(names).items()}
    assert problems == {
        "p2d_good": None,
        "p2d_bad": "ZeroDivisionError: division by zero",
        "p2d_crash": "importing it ends Python with SIGILL",
        "p2d_exit": "importing it ends Python with code 4",
        "p2d_leave": "SystemExit: 0",
        "p2d_none": "ModuleNotFoundError: No module named 'p2d_none'",
        "json": None,
    }


def test_an_import_that_hangs_is_given_up(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "p2d_hang.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(packages, "_TIMEOUT_S", 1.0)
    found = import_each(["json", "p2d_hang", "csv"])
    assert found["json"]["problem"] is None
    assert found["p2d_hang"]["problem"] == "importing it took longer than 1.0 s"
    assert found["csv"]["problem"] is None


@pytest.mark.parametrize(
    ("version", "wanted", "enough"),
    [
        ("2.6.0", ">=2.6", True),
        ("2.10.1+cpu", ">=2.6", True),
        ("2.5.9", ">=2.6", False),
        ("10", ">=10.0", True),
        ("1.0rc1", ">=1.0", True),
        ("3", "", True),
        ("3", ">=2,<4", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, enough: bool) -> None:
    assert new_enough(version, wanted) is enough


@pytest.mark.parametrize(
    ("package", "module"),
    [("pillow", "PIL"), ("scikit-learn", "sklearn"), ("lightning-fabric", "lightning_fabric")],
)
def test_what_is_imported_has_another_name_than_what_is_installed(
    package: str, module: str
) -> None:
    assert module_of(package) == module


def declare(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: list(requirements))


def test_packages_are_those_declared_but_not_those_for_development(
    monkeypatch: pytest.MonkeyPatch, modules: Path
) -> None:
    declare(
        monkeypatch,
        "pyyaml>=6.0",
        "rich>=999",
        "p2d-nowhere>=1",
        "p2d-optional>=2; extra == 'some'",
        "pytest>=8; extra == 'dev'",
        "other>=1; python_version >= '3.11' and extra == 'dev'",
    )
    found = {package.name: package for package in find_packages()}
    assert list(found) == ["pyyaml", "rich", "p2d-nowhere", "p2d-optional"]
    assert found["pyyaml"].usable
    assert found["rich"].problem == "too old: >=999 is needed"
    assert found["p2d-nowhere"].version is None
    assert not found["p2d-nowhere"].usable
    assert found["p2d-optional"].extra == "some"


def test_an_installed_package_that_cannot_be_imported_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, modules: Path
) -> None:
    (modules / "yaml.py").write_text("raise ImportError('libyaml.so: cannot open')")
    declare(monkeypatch, "pyyaml>=6.0")
    (package,) = find_packages()
    assert not package.usable
    assert package.problem == "ImportError: libyaml.so: cannot open"


def test_without_an_installation_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    with pytest.raises(MissingDependencyError, match="is not installed"):
        find_packages()
