"""What becomes of a probe that fails, crashes, hangs or talks nonsense."""

from __future__ import annotations

import io
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import QUICK, ConvModel

from prune2deploy.devices import LocalSettings, local, open_device
from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.devices.local import LocalDevice
from prune2deploy.errors import DeviceError


def ignore(line: Mapping[str, Any]) -> None:
    pass


@pytest.fixture
def fake_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts these lines of Python in the probe's place."""

    def put(source: str) -> None:
        text = f"import json, os, signal, subprocess, sys, time\n{source}"
        monkeypatch.setattr(local, "probe_bytes", text.encode)

    return put


def run(job: Mapping[str, Any] | None = None, limit_s: float = 30.0) -> dict[str, Any]:
    with LocalDevice() as device:
        return device.run_probe(job or {}, time_limit_s=limit_s, report=ignore)


def test_a_python_that_cannot_read_the_probe_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = zipfile.ZipFile(io.BytesIO(probe_bytes())).read("__main__.py").decode()
    old = "import sys; sys.version_info = (3, 6, 9); sys.version = '3.6.9 (default)'\n"
    monkeypatch.setattr(local, "probe_bytes", (old + start).encode)
    with pytest.raises(DeviceError, match=r"Python 3\.6\.9 at .* is too old, 3\.8 or newer"):
        run()


def test_an_unknown_device_brings_the_nearest_name() -> None:
    with pytest.raises(DeviceError, match=r"'locla'.*Did you mean 'local'"):
        open_device("locla", {"local": LocalSettings()})


def test_progress_is_told_apart_from_what_the_runtime_logs(fake_probe: Any) -> None:
    fake_probe(
        'for text in (\'{"stage": "alone", "done": 0.5}\', "W:onnxruntime: hm", "[1]", "7"):\n'
        "    print(text, file=sys.stderr)\n"
        'print(json.dumps({"status": "ok", "job": json.loads(sys.stdin.readline())}))'
    )
    seen: list[Mapping[str, Any]] = []
    with LocalDevice() as device:
        answer = device.run_probe({"seed": 3}, time_limit_s=30, report=seen.append)
    assert seen == [{"stage": "alone", "done": 0.5}]
    assert answer["job"]["seed"] == 3
    assert answer["job"]["limit_s"] > 30, "a probe whose caller is gone still ends"


def test_a_signal_is_named_with_advice_and_last_words(fake_probe: Any) -> None:
    fake_probe('print("about to go", file=sys.stderr); os.kill(os.getpid(), signal.SIGILL)')
    with pytest.raises(DeviceError, match=r"(?s)SIGILL.*instructions.*about to go"):
        run()


def test_an_answer_that_is_none(fake_probe: Any) -> None:
    fake_probe('print("Hello"); print("no module named x", file=sys.stderr); sys.exit(3)')
    with pytest.raises(DeviceError, match=r"(?s)code 3 and no answer.*no module named x"):
        run()


def test_an_interrupted_probe_says_so(fake_probe: Any) -> None:
    fake_probe('print(\'{"status": "interrupted"}\'); sys.exit(130)')
    with pytest.raises(DeviceError, match="interrupted from outside"):
        run()


def test_a_hung_probe_is_stopped_with_its_children(fake_probe: Any, tmp_path: Path) -> None:
    note = tmp_path / "child"
    # It ignores the polite signal, as a process inside a hung call does.
    fake_probe(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"did not end within 1 s.*time_limit_s"):
        run(limit_s=1)
    assert time.monotonic() - start < 30
    state = Path(f"/proc/{note.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_ctrl_c_ends_the_probe_and_goes_on_up(fake_probe: Any, tmp_path: Path) -> None:
    note = tmp_path / "probe"
    fake_probe(
        f"open({str(note)!r}, 'w').write(str(os.getpid()))\n"
        'print(\'{"stage": "measure"}\', file=sys.stderr, flush=True); time.sleep(600)'
    )

    def interrupt(line: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with LocalDevice() as device, pytest.raises(KeyboardInterrupt):
        device.run_probe({}, time_limit_s=30, report=interrupt)
    assert not Path(f"/proc/{note.read_text()}").exists()


def test_a_python_that_is_not_there() -> None:
    expected = r"cannot start Python at /no/such/python"
    with (
        LocalDevice(settings=LocalSettings(python="/no/such/python")) as device,
        pytest.raises(DeviceError, match=expected),
    ):
        device.run_probe({}, time_limit_s=5, report=ignore)


RUNTIME = """
import os, signal
__version__ = "0"
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
def InferenceSession(*args, **kwargs): {body}
def get_available_providers(): return ["CPUExecutionProvider"]
"""


@pytest.fixture
def fake_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the probe import this instead of ONNX Runtime."""

    def put(source: str) -> None:
        (tmp_path / "onnxruntime.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def job(model: Path) -> dict[str, Any]:
    return {"models": [{"name": "net", "path": str(model)}], **QUICK}


def test_a_runtime_that_crashes_names_the_model(fake_runtime: Any, conv_model: ConvModel) -> None:
    fake_runtime(RUNTIME.format(body="os.kill(os.getpid(), signal.SIGILL)"))
    with pytest.raises(DeviceError, match=r"'local': model 'net': .*SIGILL.*install a build"):
        run(job(conv_model(4)))


def test_a_runtime_that_hangs_is_stopped(fake_runtime: Any, conv_model: ConvModel) -> None:
    fake_runtime(RUNTIME.format(body="signal.pause()"))
    with pytest.raises(DeviceError, match="did not end within 3 s"):
        run(job(conv_model(4)), limit_s=3)


def test_a_runtime_that_chatters_on_standard_output_does_no_harm(
    fake_runtime: Any, conv_model: ConvModel
) -> None:
    fake_runtime(RUNTIME.format(body="print('EP Error'); raise RuntimeError('no way')"))
    with pytest.raises(DeviceError, match=r"model 'net': ONNX Runtime cannot load it: no way"):
        run(job(conv_model(4)))


def test_a_missing_runtime_says_how_to_install_it(fake_runtime: Any, conv_model: ConvModel) -> None:
    fake_runtime("raise ImportError('libfoo.so is missing')")
    expected = rf"libfoo.so is missing.*{sys.executable} -m pip install onnxruntime"
    with pytest.raises(DeviceError, match=expected):
        run(job(conv_model(4)))


def test_a_fault_of_the_probe_shows_where_it_happened(
    fake_runtime: Any, conv_model: ConvModel
) -> None:
    fake_runtime("SessionOptions = 0\n__version__ = '0'")
    with pytest.raises(DeviceError, match=r"(?s)Please report this.*line \d+, in open"):
        run(job(conv_model(4)))
