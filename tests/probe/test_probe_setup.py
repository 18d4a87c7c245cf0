"""The probe's ask "setup": environments and pip, played by scripts; and its ask "lock"."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.probe import setup as module
from prune2deploy.probe.job import Refusal, read_job
from prune2deploy.probe.setup import locked, setup

# It makes an environment whose Python is this script again, and notes what it was called with.
FAKE = """\
#!/bin/sh
echo "$@" >> {log}
case "$*" in
*"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    case "$*" in *--system*) sees=true;; *) sees=false;; esac
    echo "include-system-site-packages = $sees" > "$folder/pyvenv.cfg"
    {venv};;
*"pip install"*) {pip};;
*"pip --version"*) exit {pip_there};;
esac
"""

Play = Callable[..., Path]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Return a function that makes a fake Python run the probe; it returns the log of calls."""

    def put(
        *, venv: str = "exit 0", pip: str = "echo fetching; echo done", pip_there: int = 0
    ) -> Path:
        log = tmp_path / "log"
        script = tmp_path / "python"
        script.write_text(FAKE.format(log=log, venv=venv, pip=pip, pip_there=pip_there))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return log

    return put


def job(folder: Path, **more: Any) -> dict[str, Any]:
    asked = {"ask": "setup", "folder": str(folder), "packages": ["numpy", "onnxruntime"], **more}
    return read_job(json.dumps(asked))


def test_it_makes_the_environment_and_installs(
    play: Play, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log, folder = play(), tmp_path / "venv"
    assert setup(job(folder)) == {"python": f"{folder}/bin/python", "created": True}
    first, second = log.read_text().splitlines()
    assert first == f"-m venv {folder}"
    assert second.startswith("-m pip install --no-input")
    assert second.endswith("numpy onnxruntime")
    shown = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [one["stage"] for one in shown] == [
        f"making {folder}",
        "pip install numpy onnxruntime",
        "fetching",
        "done",
    ]
    shares = [one["done"] for one in shown]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_what_is_there_stays(play: Play, tmp_path: Path) -> None:
    log, folder = play(), tmp_path / "venv"
    setup(job(folder))
    assert not setup(job(folder))["created"]
    assert log.read_text().count("-m venv") == 1
    assert log.read_text().count("pip install") == 2


def test_one_without_pip_is_made_again(play: Play, tmp_path: Path) -> None:
    log, folder = play(pip_there=1), tmp_path / "venv"
    setup(job(folder))
    assert setup(job(folder))["created"]
    assert log.read_text().count("-m venv") == 2


def test_one_that_does_not_see_the_system_is_made_again_where_it_should(
    play: Play, tmp_path: Path
) -> None:
    log, folder = play(), tmp_path / "venv"
    setup(job(folder))
    assert setup(job(folder, system_site=True))["created"]
    assert f"-m venv --system-site-packages {folder}" in log.read_text()
    assert not setup(job(folder, system_site=True))["created"]


def test_a_tilde_is_home(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert setup(job(Path("~/e")))["python"] == f"{tmp_path}/e/bin/python"


def refused(told: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        setup(told)
    return caught.value.facts["kind"], caught.value.facts["message"]


def test_a_python_without_venv(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = play()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ensurepip" else found(name)
    )
    kind, message = refused(job(tmp_path / "venv"))
    assert kind == "no_venv"
    assert "ensurepip is missing" in message
    assert "sudo apt-get install python3-venv" in message
    assert not log.exists()


def test_an_environment_that_cannot_be_made(play: Play, tmp_path: Path) -> None:
    play(venv="echo no room; exit 3")
    kind, message = refused(job(tmp_path / "venv"))
    assert kind == "no_venv"
    assert "(code 3); it said:\nno room\n" in message


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Failed to establish a new connection: Name or service", "a way to the network"),
        ("Temporary failure in name resolution", "a way to the network"),
        ("ERROR: No matching distribution found for onnxruntime", "There is none for Python 3"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("error: metadata-generation-failed", "Mend what it says"),
    ],
)
def test_pip_that_fails_is_told_with_its_last_words(
    play: Play, tmp_path: Path, said: str, advice: str
) -> None:
    play(pip=f'for n in 1 2 3 4 5 6 7 8 9; do echo "line $n"; done; echo "{said}" >&2; exit 1')
    kind, message = refused(job(tmp_path / "venv"))
    assert kind == "no_install"
    assert f"line 9\n{said}\n" in message
    assert "line 1\n" not in message
    assert advice in message


def test_a_program_does_not_outlive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str, done: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.follow(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; echo on; exec sleep 600"], 0.0)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_lock_is_taken_and_let_go(tmp_path: Path) -> None:
    asked = read_job(json.dumps({"ask": "lock", "lock": str(tmp_path / "l"), "lock_wait_s": 0}))
    assert locked(asked)["lock"] == str(tmp_path / "l")
    with (tmp_path / "l").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Refusal, match="another measurement"):
            locked(asked)
