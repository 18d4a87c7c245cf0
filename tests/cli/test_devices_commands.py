"""`prune2deploy devices`: on a stand-in for a device, and some of it on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result
from typing_extensions import Self

from prune2deploy.devices import SshSettings, file, opening, shell_test
from prune2deploy.devices.settings import CommonSettings
from prune2deploy.errors import DeviceError

Call = Callable[..., Result]

PI = "# my boards\ndevices:\n  pi:  # on the shelf\n    kind: ssh\n    host: raspberrypi.local\n"
VENV = "/home/pi/.cache/prune2deploy/venv/bin/python"
ORT = {"versions": {"onnxruntime": "1.31.1"}, "signal": None, "message": None}
NONE = {"versions": None, "signal": None, "message": "python3 cannot import it"}
MACHINE = {"kind": "raspberry_pi", "board": "Raspberry Pi 5 Model B", "cpu_count": 4}
GOVERNOR = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"


class FakeDevice:
    """Answers as a Raspberry Pi would; what is asked of it and how it was opened, it remembers."""

    def __init__(self) -> None:
        self.name = "pi"
        self.settings: CommonSettings = SshSettings(kind="ssh", host="x")
        self.pythons: list[str] = []
        self.jobs: list[dict[str, Any]] = []
        self.failing: dict[str, DeviceError] = {}
        self.placed: dict[str, str] = {}
        self.runtime = ORT
        self.machine: dict[str, Any] = dict(MACHINE)

    def __call__(self, name: str, known: Mapping[str, Any]) -> Self:
        if name not in known:
            raise DeviceError(f"No device is named '{name}'.")
        self.settings = known[name]
        return self

    def __enter__(self) -> Self:
        self.pythons.append(getattr(self.settings, "python", ""))
        self._fail("connect")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _fail(self, step: str) -> None:
        if step in self.failing:
            raise self.failing[step]

    def place(self, path: Path) -> str:
        there = f"/there/{path.name}"
        self.placed[there] = hashlib.sha256(path.read_bytes()).hexdigest()
        return there

    def run_probe(
        self, job: Mapping[str, Any], *, time_limit_s: float, report: Callable[..., None]
    ) -> dict[str, Any]:
        asked = job.get("ask", "measure")
        self.jobs.append(dict(job))
        self._fail(asked)
        report({"stage": f"doing {asked}", "model": None, "done": 0.5})
        return getattr(self, f"_{asked}")(job)  # type: ignore[no-any-return]

    def _facts(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "python": "3.11.2",
            "executable": "/usr/bin/python3",
            "machine": self.machine,
            "state": {"governor": {"policy0": "ondemand"}},
            "runtimes": {"onnxruntime": self.runtime, "torch": NONE},
            "disk_free_bytes": 20e9,
        }

    def _files(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {"sha256": {path: self.placed.get(path) for path in job["paths"]}}

    def _lock(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {"lock": "/tmp/lock", "python": "3.11.2"}

    def _setup(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {"python": VENV, "created": True}

    def _measure(self, job: Mapping[str, Any]) -> dict[str, Any]:
        turns = [{"samples_ns": [1_000_000, 3_000_000]}, {"samples_ns": [2_000_000]}]
        return {"turns": turns, "versions": {"onnxruntime": "1.31.1"}, "cpus": [3]}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr(opening, "open_device", fake)
    return fake


@pytest.fixture(autouse=True)
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a devices.yaml; the user's own is elsewhere and not there."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(file, "user_file", lambda: tmp_path / "config" / "devices.yaml")
    monkeypatch.setattr("prune2deploy.devices.user_file", file.user_file)
    path = folder / "devices.yaml"
    path.write_text(PI)
    return path


def test_list_shows_every_device_and_where_was_looked(call: Call, boards: Path) -> None:
    boards.write_text(PI + "    user: pi\n    port: 2222\n    threads: 3\n")
    result = call("devices", "list")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["pi", "ssh", "pi@raspberrypi.local:2222", "onnxruntime", "3", "devices.yaml"] in rows
    assert ["local", "local", "this", "machine", "onnxruntime", "1", "always", "there"] in rows
    assert f"  {boards}\n" in result.stdout
    assert f"{boards.parents[1]}/config/devices.yaml (not there)" in result.stdout


def test_a_slip_in_the_file_is_told_with_its_line(call: Call, boards: Path) -> None:
    boards.write_text(PI + "    prot: 22\n")
    for words in (["list"], ["check", "pi"], ["setup", "pi"], ["shell-test", "pi"]):
        result = call("devices", *words)
        assert result.exit_code == 1
        assert f"error: {boards}:6: devices.pi.prot: unknown key. Did you mean" in result.stderr


def test_add_keeps_comments_and_advises_a_check(call: Call, boards: Path) -> None:
    words = ["--host", "me@orin", "--port", "22", "--key", "keys/id", "--cores", "2,3"]
    result = call("devices", "add", "orin", *words, "--threads", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "prune2deploy devices check orin\n" in result.stdout
    assert boards.read_text() == PI + (
        "  orin:\n    kind: ssh\n    host: orin\n    port: 22\n    user: me\n    key: keys/id\n"
        "    threads: 2\n    cores: [2, 3]\n"
    )


def test_add_writes_the_users_file_when_asked(call: Call, boards: Path) -> None:
    result = call("devices", "add", "orin", "--host", "o", "--key", "id", "--global")
    assert result.exit_code == 0
    assert boards.read_text() == PI
    written = (boards.parents[1] / "config" / "devices.yaml").read_text()
    # A relative path would be seen from the other folder.
    assert f"    key: {boards.parent}/id\n" in written


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pi", "--host", "x"], 1, "has a device 'pi' already"),
        (["a/b", "--host", "x"], 1, "a name is made of"),
        (["a", "--host", "x", "--runtime", "ort"], 1, "'a': runtime: should be"),
        (["a", "--host", "me:secret@x"], 2, "without a password"),
        (["a", "--host", "me@x", "--user", "you"], 2, "or HOST with --user"),
        (["a", "--host", "x", "--cores", "two"], 2, "should be numbers of CPUs"),
        (["a", "--host", "x", "--port", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_a_wrong_device_is_not_added(
    call: Call, boards: Path, words: list[str], code: int, said: str
) -> None:
    result = call("devices", "add", *words)
    assert result.exit_code == code
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert boards.read_text() == PI


def test_check_tells_what_it_is_and_what_disturbs(call: Call, device: FakeDevice) -> None:
    result = call("devices", "check", "pi")
    assert result.exit_code == 0
    assert "pi: Raspberry Pi 5 Model B, 4 CPUs" in result.stdout
    assert "onnxruntime 1.31.1" in result.stdout
    assert f"       echo performance | sudo tee {GOVERNOR}\n" in result.stdout
    assert "Models can be measured on pi, disturbed as it is." in result.stdout


def test_check_fails_where_nothing_can_be_measured(call: Call, device: FakeDevice) -> None:
    device.runtime = NONE
    result = call("devices", "check", "pi")
    assert result.exit_code == 1
    assert "Cannot measure there. The runtime ONNX Runtime is missing" in result.stdout
    assert "Install it with: prune2deploy devices setup pi" in result.stdout
    assert "Models can be measured" not in result.stdout


def test_check_of_a_device_without_a_connection(call: Call, device: FakeDevice) -> None:
    device.failing["connect"] = DeviceError("Device 'pi': no connection. Is it switched on?")
    result = call("devices", "check", "pi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: Device 'pi': no connection. Is it switched on?\n" in result.stderr


def test_check_of_a_python_that_cannot_read_the_probe(call: Call, device: FakeDevice) -> None:
    device.failing["facts"] = DeviceError(
        "no answer: SyntaxError: future feature annotations is not defined"
    )
    result = call("devices", "check", "pi")
    assert result.exit_code == 1
    assert "its Python at python3 is too old, 3.8 or newer is needed" in result.stderr


@pytest.mark.parametrize("command", ["check", "setup", "shell-test"])
def test_an_unknown_device(call: Call, command: str) -> None:
    result = call("devices", command, "pj")
    assert result.exit_code == 1
    assert "No device is named 'pj'. Did you mean 'pi'?" in result.stderr


def test_setup_installs_and_says_what_to_set(call: Call, device: FakeDevice, boards: Path) -> None:
    result = call("devices", "setup", "pi")
    assert result.exit_code == 0
    (job,) = [job for job in device.jobs if job["ask"] == "setup"]
    assert job["packages"] == ["numpy", "onnxruntime"]
    assert job["folder"] == "~/.cache/prune2deploy/venv"
    assert not job["system_site"]
    assert device.pythons == ["python3", VENV], "the second look is at the new environment"
    assert f"set this for 'pi' in {boards}, or run this with --write:\n" in result.stdout
    assert f"    python: {VENV}\n" in result.stdout
    assert boards.read_text() == PI


def test_setup_sets_it_when_asked_and_keeps_comments(
    call: Call, device: FakeDevice, boards: Path
) -> None:
    assert call("devices", "setup", "pi", "--write").exit_code == 0
    assert boards.read_text() == PI.replace("ssh\n", f"ssh\n    python: {VENV}\n")


def test_setup_on_a_jetson_sees_the_systems_packages(call: Call, device: FakeDevice) -> None:
    device.machine = {"kind": "jetson"}
    assert call("devices", "setup", "pi").exit_code == 0
    assert next(job for job in device.jobs if job["ask"] == "setup")["system_site"]


def test_setup_starts_from_the_systems_python_where_its_own_is_set_already(
    call: Call, device: FakeDevice, boards: Path
) -> None:
    boards.write_text(PI + "    python: ~/.cache/prune2deploy/venv/bin/python\n")
    assert call("devices", "setup", "pi").exit_code == 0
    assert device.pythons == ["python3", VENV]


def test_setup_that_brings_no_runtime_is_a_failure(call: Call, device: FakeDevice) -> None:
    device.runtime = NONE
    result = call("devices", "setup", "pi")
    assert result.exit_code == 1
    assert "ONNX Runtime is missing" in result.stdout


def test_setup_is_not_for_this_machine(call: Call) -> None:
    result = call("devices", "setup", "local")
    assert result.exit_code == 1
    assert "Device 'local' is this machine" in result.stderr
    assert "-m pip install numpy onnxruntime" in result.stderr


def test_shell_test_ticks_every_step(call: Call, device: FakeDevice) -> None:
    result = call("devices", "shell-test", "pi")
    assert result.exit_code == 0
    assert [line[0] for line in result.stdout.splitlines() if line[0] != " "] == [*"✓✓✓✓✓", "A"]
    assert "median 2 ms of 3 runs on CPU [3]; onnxruntime 1.31.1" in result.stdout
    assert result.stdout.endswith("All that a measurement on pi needs works.\n")


@pytest.mark.parametrize(
    ("step", "ticks"), [("connect", 0), ("files", 1), ("lock", 3), ("measure", 4)]
)
def test_shell_test_ends_at_the_first_step_that_fails(
    call: Call, device: FakeDevice, step: str, ticks: int
) -> None:
    device.failing[step] = DeviceError(f"Device 'pi': {step} went wrong.")
    result = call("devices", "shell-test", "pi")
    assert result.exit_code == 1
    marks = [line[0] for line in result.stdout.splitlines() if line[0] != " "]
    assert marks == ["✓"] * ticks + ["✗"]
    assert f"error: Device 'pi': {step} went wrong.\n" in result.stderr


def test_shell_test_finds_a_file_that_arrived_damaged(call: Call, device: FakeDevice) -> None:
    device.place = lambda path: "/there/nothing"  # type: ignore[method-assign]
    result = call("devices", "shell-test", "pi")
    assert result.exit_code == 1
    assert "✗ a file goes there" in result.stdout
    assert "Check its disk" in result.stderr


PROGRAM = """
import sys
from test_devices_commands import FakeDevice
from prune2deploy.cli import main
from prune2deploy.devices import opening
opening.open_device = FakeDevice()
sys.argv[1:] = ["devices", "check", "pi"]
main()
"""


def test_commands_stay_whole_on_a_narrow_terminal(
    on_terminal: Callable[..., tuple[int, str]], environment: dict[str, str]
) -> None:
    path = f"{Path(__file__).parent}:{environment.get('PYTHONPATH', '')}"
    code, shown = on_terminal(PROGRAM, {**environment, "PYTHONPATH": path, "COLUMNS": "80"})
    assert code == 0, shown
    lines = [line.rstrip() for line in shown.splitlines()]
    assert f"       echo performance | sudo tee {GOVERNOR}" in lines
    words = [line for line in lines if "sudo tee" not in line and "\x1b" not in line]
    assert max(map(len, words)) <= 80


def test_check_of_this_machine(call: Call) -> None:
    result = call("devices", "check", "local")
    assert result.exit_code == 0, result.stderr
    assert "Models can be measured on local" in result.stdout
    assert "onnxruntime" in result.stdout


def test_shell_test_of_this_machine(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = shell_test.ask

    def quick(device: Any, label: str, job: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        # A lock of its own: nobody else's measurement is waited for.
        return asked(device, label, {**job, "lock": str(tmp_path / "lock")}, limit_s)

    monkeypatch.setattr(shell_test, "ask", quick)
    monkeypatch.setattr(shell_test, "_MEASURE_S", 0.05)
    result = call("devices", "shell-test", "local")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("✓") == 5
    assert "ms of" in result.stdout
