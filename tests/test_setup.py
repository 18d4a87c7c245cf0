"""scripts/setup.sh with stand-ins for Python and pip: what it makes, keeps, and says."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A Python that reports a version, may lack ensurepip, and whose venv holds a copy of itself.
FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
  *'print("%d.%d"'*) echo {version} ;;
  *print*) echo "{version} of {name}" ;;
  *version_info*) [ {version_number} -ge 310 ] ;;
  *ensurepip*) {has_venv} ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*) echo "$*" >>pip.log; [ ! -e pip-fails ] ;;
esac
"""


@dataclass
class Project:
    """A folder with the set-up scripts, and a PATH that holds only basic tools."""

    folder: Path
    path: Path

    def add_python(self, name: str, version: str, *, venv: bool = True) -> None:
        major, minor = version.split(".")
        text = FAKE_PYTHON.format(
            name=name,
            version=version,
            version_number=int(major) * 100 + int(minor),
            has_venv="true" if venv else "false",
        )
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "scripts/setup.sh"],
            cwd=self.folder,
            env={"PATH": str(self.path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def installs(self) -> list[str]:
        """Arguments of every pip install since the last call."""
        log = self.folder / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.removeprefix("-m pip install ") for line in lines]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder, path = tmp_path / "the project", tmp_path / "bin"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "pyproject.toml").write_text("[project]\n")
    path.mkdir()
    for tool in ("sh", "cat", "cksum", "cp", "dirname", "grep", "id", "mkdir", "rm", "rmdir"):
        found = shutil.which(tool)
        assert found is not None
        (path / tool).symlink_to(found)
    return Project(folder, path)


def test_the_second_run_installs_nothing(project: Project) -> None:
    project.add_python("python3", "3.11")
    assert project.setup().returncode == 0
    assert project.installs() == ["--editable .[dev]"]
    assert project.setup().returncode == 0
    assert project.installs() == []


def test_a_changed_pyproject_is_installed_into_the_same_environment(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    project.installs()
    (project.folder / ".venv" / "mine").touch()
    (project.folder / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    project.setup()
    assert project.installs() == ["--editable .[dev]"]
    assert (project.folder / ".venv" / "mine").exists()


def test_an_interrupted_installation_begins_again(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    (project.folder / ".venv" / "half").touch()
    (project.folder / ".venv" / "setup-state").write_text("unfinished\n")
    done = project.setup()
    assert "interrupted" in done.stderr
    assert not (project.folder / ".venv" / "half").exists()
    assert project.setup().stderr == ""


def test_a_failed_update_leaves_the_environment_for_another_try(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    project.installs()
    (project.folder / ".venv" / "mine").touch()
    (project.folder / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    (project.folder / "pip-fails").touch()
    assert project.setup().returncode == 1
    (project.folder / "pip-fails").unlink()
    project.installs()
    assert project.setup().returncode == 0
    assert project.installs() == ["--editable .[dev]"]
    assert (project.folder / ".venv" / "mine").exists()


def test_a_moved_project_is_installed_again(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    moved = project.folder.rename(project.folder.with_name("elsewhere"))
    (moved / "pip.log").unlink()
    project.folder = moved
    project.setup()
    assert project.installs() == ["--editable .[dev]"]


@pytest.mark.parametrize("finished", [False, True])
def test_somebody_elses_environment_is_used_and_not_removed(
    project: Project, finished: bool
) -> None:
    project.add_python("python3", "3.11")
    subprocess.run(
        ["python3", "-m", "venv", ".venv"],
        cwd=project.folder,
        env={"PATH": str(project.path)},
        executable=project.path / "python3",
        check=True,
    )
    (project.folder / ".venv" / "mine").touch()
    if finished:
        project.setup()
        (project.folder / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    (project.folder / "pip-fails").touch()
    assert project.setup().returncode == 1
    (project.folder / "pip-fails").unlink()
    assert project.setup().returncode == 0
    assert (project.folder / ".venv" / "mine").exists()


def test_an_environment_that_is_no_environment_is_named(project: Project) -> None:
    project.add_python("python3", "3.11")
    (project.folder / ".venv").mkdir()
    (project.folder / ".venv" / "notes.txt").touch()
    done = project.setup()
    assert done.returncode == 1
    assert "rm -r .venv" in done.stderr
    assert (project.folder / ".venv" / "notes.txt").exists()


def test_torch_comes_from_the_index_that_is_named(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    project.installs()
    index = {"TORCH_INDEX_URL": "https://packages.example/cpu"}
    done = project.setup(**index)
    assert "TORCH_INDEX_URL" in done.stderr
    assert project.installs() == [
        "--index-url https://packages.example/cpu torch torchvision",
        "--editable .[dev]",
    ]
    project.setup(**index)
    project.setup()
    assert project.installs() == []


def test_another_python_makes_another_environment(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.add_python("python3.12", "3.12")
    project.setup()
    project.installs()
    assert project.setup(PYTHON="python3").stderr == ""
    done = project.setup(PYTHON="python3.12")
    assert "PYTHON is not the one" in done.stderr
    assert "python3.12" in (project.folder / ".venv/bin/python").read_text()


def test_the_first_python_that_has_venv_is_taken(project: Project) -> None:
    project.add_python("python3", "3.9")
    project.add_python("python3.12", "3.12", venv=False)
    project.add_python("python3.10", "3.10")
    assert "bin/python3.10" in project.setup().stderr


@pytest.mark.parametrize(
    ("pythons", "said"),
    [
        ({}, "apt-get install -y python3 python3-venv"),
        ({"python3": ("3.11", False)}, "apt-get install -y python3-venv"),
        ({"python3.12": ("3.12", False)}, "apt-get install -y python3.12-venv"),
        ({"python3": ("3.8", True)}, "3.10 or newer is needed; found: python3 (3.8)"),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    project: Project, pythons: dict[str, tuple[str, bool]], said: str
) -> None:
    (project.path / "apt-get").symlink_to("/bin/true")
    for name, (version, venv) in pythons.items():
        project.add_python(name, version, venv=venv)
    done = project.setup()
    assert done.returncode == 1
    assert said in done.stderr
    assert not (project.folder / ".venv").exists()


def test_a_python_that_does_not_run_is_refused_by_its_name(project: Project) -> None:
    project.add_python("python3", "3.11")
    done = project.setup(PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "PYTHON=/nowhere/python does not run" in done.stderr


def test_a_wrong_python_does_not_cost_the_environment(project: Project) -> None:
    project.add_python("python3", "3.11")
    project.setup()
    assert project.setup(PYTHON="/nowhere/python").returncode == 1
    assert (project.folder / ".venv/bin/python").exists()


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:"))
    done = subprocess.run(
        ["make", "help"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},  # a make inside a make would talk of itself
        capture_output=True,
        text=True,
        check=True,
    )
    explained = [line.split()[1] for line in done.stdout.splitlines()]
    assert explained == phony.split()[1:]
