"""A device behind a real sshd: what it does, and everything that can go wrong on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from loopback_sshd import Sshd, make_key
from tiny_onnx import QUICK, ConvModel

from prune2deploy import progress
from prune2deploy.devices import SshSettings, open_device
from prune2deploy.devices.local import LocalDevice
from prune2deploy.devices.ssh import SshDevice
from prune2deploy.errors import DeviceError

LONG = {**QUICK, "min_time_s": 600}


def ignore(line: Mapping[str, Any]) -> None:
    pass


def job(path: str, **settings: Any) -> dict[str, Any]:
    return {"models": [{"name": "net", "path": path}], "lock": None, **QUICK, **settings}


def refused(settings: SshSettings) -> str:
    with pytest.raises(DeviceError) as caught, SshDevice("board", settings):
        pass
    return str(caught.value)


def probes(folder: Path) -> list[int]:
    """Processes that run the probe from this folder, or were started by it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def nothing_left(folder: Path, limit_s: float = 15.0) -> bool:
    end = time.monotonic() + limit_s
    while probes(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Cutting:
    """A listener of progress that does something once work has begun, and keeps the labels."""

    def __init__(self, action: Any = None) -> None:
        self.labels: list[str] = []
        self.action = action

    def open(self, label: str, total: float | None) -> Cutting:
        self.labels.append(label)
        return self

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        if self.action and steps:
            action, self.action = self.action, None
            action()

    def close(self, task: Any) -> None:
        pass


def test_it_measures_as_this_machine_does(sshd: Sshd, conv_model: ConvModel) -> None:
    path = conv_model(8)
    with SshDevice("board", sshd.settings()) as device:
        there = device.place(path)
        answer = device.run_probe(job(there), time_limit_s=60, report=ignore)
    with LocalDevice() as here:
        expected = here.run_probe(job(str(path)), time_limit_s=60, report=ignore)
    assert answer["models"][0]["outputs"] == expected["models"][0]["outputs"]
    assert Path(there).read_bytes() == path.read_bytes()
    assert nothing_left(sshd.folder / "on the device")


def test_a_file_is_sent_once(sshd: Sshd, conv_model: ConvModel) -> None:
    path, listener = conv_model(8), Cutting()
    with progress.use(listener), SshDevice("board", sshd.settings()) as device:
        first = device.place(path)
        assert device.place(path) == first
    assert [label for label in listener.labels if label.startswith("Sending")] == [
        f"Sending {path.name} to board"
    ]
    left = {one.suffix for one in (sshd.folder / "on the device").iterdir()}
    assert left == {".onnx", ".pyz"}


@pytest.mark.parametrize("damaged", [False, True])
def test_what_an_older_attempt_left_is_gone_on_with(
    sshd: Sshd, conv_model: ConvModel, damaged: bool
) -> None:
    path = conv_model(8)
    content = path.read_bytes()
    with SshDevice("board", sshd.settings()) as device:
        there = Path(device.place(path))
        there.unlink()
        half = content[: len(content) // 2]
        Path(f"{there}.part").write_bytes(bytes(len(half)) if damaged else half)
        assert device.place(path) == str(there)
    assert there.read_bytes() == content


def test_a_file_that_is_not_what_its_name_says_is_sent_again(
    sshd: Sshd, conv_model: ConvModel
) -> None:
    path = conv_model(8)
    with SshDevice("board", sshd.settings()) as device:
        there = Path(device.place(path))
        there.write_bytes(b"rubbish")
        device.place(path)
    assert there.read_bytes() == path.read_bytes()


def test_names_cannot_be_commands(sshd: Sshd, conv_model: ConvModel, tmp_path: Path) -> None:
    bad = "x'; touch pwned; echo $(touch pwned) `touch pwned` \"&& .onnx"
    path = conv_model(4, name=bad)
    (tmp_path / "py thon $(touch pwned)").symlink_to(sys.executable)
    settings = sshd.settings(
        python=str(tmp_path / "py thon $(touch pwned)"),
        folder=str(sshd.folder / "a b; touch pwned '$(touch pwned)'"),
    )
    with SshDevice("board", settings) as device:
        work = job(device.place(path))
        work["models"][0]["name"] = "net\n'; touch pwned"
        # The link is no virtual environment any more and may find no runtime; the probe that
        # says so did start.
        with contextlib.suppress(DeviceError):
            device.run_probe(work, time_limit_s=60, report=ignore)
        assert device.run_probe({"ask": "files"}, time_limit_s=60, report=ignore)["sha256"] == {}
    places = (Path.home(), Path.cwd(), tmp_path, sshd.folder, Path("/root"))
    assert not [place for place in places if (place / "pwned").exists()]


def test_ssh_config_and_a_jump_host_count(sshd: Sshd, home: Path, conv_model: ConvModel) -> None:
    (home / ".ssh/config").write_text(
        f"Host gate board\n HostName 127.0.0.1\n Port {sshd.port}\n"
        f" IdentityFile {sshd.folder}/id\n UserKnownHostsFile {sshd.folder}/known_hosts\n"
        "Host board\n ProxyJump gate\n"
    )
    settings = sshd.settings(host="board", port=None, key=None, known_hosts=None)
    with SshDevice("board", settings) as device:
        assert device.run_probe({"ask": "files"}, time_limit_s=60, report=ignore)["sha256"] == {}
    assert (sshd.folder / "log").read_text().count("Accepted publickey") == 2


def test_nobody_listens(sshd: Sshd) -> None:
    sshd.stop()
    text = refused(sshd.settings())
    assert "'board': no connection to 127.0.0.1 port" in text
    assert "sshd runs there" in text


def test_a_name_that_nobody_knows(sshd: Sshd) -> None:
    assert "no machine called 'no-such-host.invalid'" in refused(
        sshd.settings(host="no-such-host.invalid")
    )


def test_a_wrong_key(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    text = refused(sshd.settings(key=tmp_path / "other"))
    assert "does not accept these keys" in text
    assert f"ssh-copy-id -p {sshd.port} " in text


def test_a_key_that_is_not_there(sshd: Sshd, tmp_path: Path) -> None:
    assert "there is no key file" in refused(sshd.settings(key=tmp_path / "absent"))
    (tmp_path / "text").write_text("hello")
    assert "cannot be used" in refused(sshd.settings(key=tmp_path / "text"))


def test_an_unknown_host_key_is_not_accepted(sshd: Sshd, tmp_path: Path) -> None:
    text = refused(sshd.settings(known_hosts=tmp_path / "empty"))
    assert "none is accepted unseen" in text
    assert "compare the fingerprint" in text
    (tmp_path / "empty").touch()
    assert "none is accepted unseen" in refused(sshd.settings(known_hosts=tmp_path / "empty"))


def test_a_changed_host_key_is_another_matter(sshd: Sshd) -> None:
    sshd.new_host_key()
    text = refused(sshd.settings())
    assert "is not the one in" in text
    assert f'ssh-keygen -R "[127.0.0.1]:{sshd.port}"' in text
    assert not (sshd.folder / "on the device").exists(), "nothing was sent"


def test_a_silent_host_has_a_time_limit(home: Path, sshd: Sshd) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        text = refused(sshd.settings(port=silent.getsockname()[1], connect_timeout_s=0.5))
    assert "gave no answer within 0.5 s" in text


def test_a_link_that_is_cut_while_a_file_travels(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(os.urandom(1 << 16) * 512)  # 32 MiB
    with (
        progress.use(Cutting(sshd.cut)),
        pytest.raises(DeviceError, match=r"'board': .*connection was lost"),
        SshDevice("board", sshd.settings()) as device,
    ):
        device.place(path)
    parts = list((sshd.folder / "on the device").glob("*.part"))
    assert len(parts) == 1
    listener = Cutting()
    with progress.use(listener), SshDevice("board", sshd.settings()) as device:
        there = Path(device.place(path))
    assert there.read_bytes() == path.read_bytes()
    assert not list((sshd.folder / "on the device").glob("*.part"))


def test_a_link_that_is_cut_while_it_measures(sshd: Sshd, conv_model: ConvModel) -> None:
    lock = str(sshd.folder / "lock")
    path = conv_model(8)

    def cut(line: Mapping[str, Any]) -> None:
        if line["stage"] == "measure":
            sshd.cut()

    with (
        pytest.raises(DeviceError, match=r"'board': .*connection"),
        SshDevice("board", sshd.settings()) as device,
    ):
        device.run_probe(
            job(device.place(path), min_time_s=600, lock=lock), time_limit_s=60, report=cut
        )
    assert nothing_left(sshd.folder / "on the device")
    with SshDevice("board", sshd.settings()) as device:
        again = job(device.place(path), lock=lock, lock_wait_s=0)
        assert device.run_probe(again, time_limit_s=60, report=ignore)["status"] == "ok"


def test_a_probe_that_is_killed(sshd: Sshd, conv_model: ConvModel) -> None:
    folder = sshd.folder / "on the device"

    def kill(line: Mapping[str, Any]) -> None:
        if line["stage"] == "measure":
            for pid in probes(folder):
                os.kill(pid, signal.SIGKILL)

    with SshDevice("board", sshd.settings()) as device:
        there = device.place(conv_model(8))
        with pytest.raises(DeviceError, match=r"'board': the probe was ended by signal SIGKILL"):
            device.run_probe(job(there, min_time_s=600), time_limit_s=60, report=kill)
        assert nothing_left(folder)
        assert device.run_probe(job(there), time_limit_s=60, report=ignore)["status"] == "ok"


def test_a_run_that_takes_too_long(sshd: Sshd, conv_model: ConvModel) -> None:
    with SshDevice("board", sshd.settings()) as device:
        there = device.place(conv_model(8))
        with pytest.raises(DeviceError, match="did not end within 4 s and was stopped"):
            device.run_probe(job(there, min_time_s=600), time_limit_s=4, report=ignore)
        assert nothing_left(sshd.folder / "on the device")


def python_with(folder: Path, runtime: str) -> str:
    """A Python whose onnxruntime is this text."""
    (folder / "fake").mkdir()
    (folder / "fake/onnxruntime.py").write_text(runtime)
    script = folder / "python-with-fake"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/fake" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


HANGS = """
import signal, time
__version__ = "0"
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
def InferenceSession(*args, **kwargs): {body}
def get_available_providers(): return ["CPUExecutionProvider"]
"""


def test_a_runtime_that_hangs_leaves_nothing(
    sshd: Sshd, conv_model: ConvModel, tmp_path: Path
) -> None:
    # Blocked signals: nothing polite ends it.
    body = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); time.sleep(600)"
    python = python_with(tmp_path, HANGS.format(body=body))
    with SshDevice("board", sshd.settings(python=python)) as device:
        there = device.place(conv_model(4))
        with pytest.raises(DeviceError, match="did not end within 4 s"):
            device.run_probe(job(there), time_limit_s=4, report=ignore)
        assert nothing_left(sshd.folder / "on the device")


def test_a_runtime_that_crashes(sshd: Sshd, conv_model: ConvModel, tmp_path: Path) -> None:
    body = "(__import__('os').kill(__import__('os').getpid(), signal.SIGILL), time.sleep(9))"
    python = python_with(tmp_path, HANGS.format(body=body))
    with SshDevice("board", sshd.settings(python=python)) as device:
        there = device.place(conv_model(4))
        with pytest.raises(DeviceError, match=r"model 'net': .*SIGILL.*install a build"):
            device.run_probe(job(there), time_limit_s=30, report=ignore)


def test_no_python(sshd: Sshd, conv_model: ConvModel) -> None:
    with (
        SshDevice("board", sshd.settings(python="/no/python")) as device,
        pytest.raises(DeviceError, match=r"cannot start Python as '/no/python'.*apt-get install"),
    ):
        device.place(conv_model(4))


def test_no_runtime(sshd: Sshd, conv_model: ConvModel, tmp_path: Path) -> None:
    python = python_with(tmp_path, "raise ImportError('no libfoo')")
    with SshDevice("board", sshd.settings(python=python)) as device:
        there = device.place(conv_model(4))
        with pytest.raises(DeviceError, match=r"cannot import the runtime \(no libfoo\)"):
            device.run_probe(job(there), time_limit_s=30, report=ignore)


def test_an_operator_that_the_runtime_lacks(sshd: Sshd, unknown_operator_model: Path) -> None:
    with SshDevice("board", sshd.settings()) as device:
        there = device.place(unknown_operator_model)
        with pytest.raises(DeviceError, match=r"model 'net': .*Frobnicate.*older opset"):
            device.run_probe(job(there), time_limit_s=30, report=ignore)


def test_a_device_clock_that_jumps_changes_no_figure(
    sshd: Sshd, conv_model: ConvModel, tmp_path: Path
) -> None:
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps/sitecustomize.py").write_text(
        "import itertools, time\n"
        "jumps = itertools.cycle([-86400.0, 1e9, 0.0])\n"
        "true, utc = time.time, time.gmtime\n"
        "time.time = lambda: true() + next(jumps)\n"
        "time.gmtime = lambda at=None: utc(time.time() if at is None else at)\n"
    )
    script = tmp_path / "python-that-jumps"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/jumps" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    with SshDevice("board", sshd.settings(python=str(script))) as device:
        answer = device.run_probe(job(device.place(conv_model(8))), time_limit_s=60, report=ignore)
    times = [answer["state"][when]["time_utc"] for when in ("start", "warm", "end")]
    assert len({time[:4] for time in times}) > 1, "the clock did jump"
    samples = [s for turn in answer["turns"] for s in turn["samples_ns"]]
    assert min(samples) > 0
    assert max(samples) < 10e9


def test_two_measurements_never_overlap(sshd: Sshd, conv_model: ConvModel) -> None:
    path, lock = conv_model(8), str(sshd.folder / "lock")
    stages: dict[int, list[tuple[float, str]]] = {0: [], 1: []}

    def measure(number: int) -> None:
        def report(line: Mapping[str, Any]) -> None:
            stages[number].append((time.monotonic(), line["stage"]))

        with SshDevice("board", sshd.settings()) as device:
            work = job(device.place(path), min_time_s=0.5, lock=lock)
            device.run_probe(work, time_limit_s=60, report=report)

    threads = [threading.Thread(target=measure, args=(number,)) for number in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waited = [n for n, seen in stages.items() if any("waiting" in s for _, s in seen)]
    assert len(waited) == 1
    second = [at for at, stage in stages[waited[0]] if "waiting" not in stage]
    first = [at for at, stage in stages[1 - waited[0]]]
    assert min(second) >= max(first)


def test_somebody_else_measures_for_too_long(sshd: Sshd, conv_model: ConvModel) -> None:
    path, lock = conv_model(8), str(sshd.folder / "lock")
    with SshDevice("board", sshd.settings()) as device:
        there = device.place(path)
        began = threading.Event()
        ended = threading.Event()

        def report(line: Mapping[str, Any]) -> None:
            if line["stage"] == "measure":
                began.set()
                ended.wait(30)

        def hold() -> None:
            with SshDevice("other", sshd.settings()) as other:
                other.run_probe(job(there, min_time_s=2, lock=lock), time_limit_s=60, report=report)

        holder = threading.Thread(target=hold)
        holder.start()
        assert began.wait(30)
        with pytest.raises(DeviceError, match=r"another measurement runs here.*\"user\": "):
            device.run_probe(job(there, lock=lock, lock_wait_s=0.2), time_limit_s=60, report=ignore)
        ended.set()
        holder.join()


def test_ctrl_c_here_ends_it_there(sshd: Sshd, conv_model: ConvModel) -> None:
    with SshDevice("board", sshd.settings()) as device:
        there = device.place(conv_model(8))
        done = threading.Event()

        def interrupt(line: Mapping[str, Any]) -> None:
            if line["stage"] == "measure" and not done.is_set():
                done.set()
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            device.run_probe(job(there, min_time_s=600), time_limit_s=60, report=interrupt)
        assert nothing_left(sshd.folder / "on the device")


def test_a_device_is_opened_by_its_name(sshd: Sshd) -> None:
    with open_device("board", {"board": sshd.settings()}) as device:
        assert device.name == "board"
        assert device.settings.threads == 1
