"""A stand-in for a Raspberry Pi: another architecture, another Python, a real sshd.

It needs the tool `fake-pi`, which is not part of this repository: FAKE_PI is its path, or it lies
in ../shared/tools. Timings there mean nothing; everything else is as on a board.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_onnx import QUICK, ConvModel

from prune2deploy.devices import SshSettings
from prune2deploy.devices.ssh import SshDevice
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions, profile

pytestmark = pytest.mark.fake_pi

TOOL = Path(os.environ.get("FAKE_PI", Path(__file__).parents[3] / "shared/tools/fake-pi"))
CANNOT = 77
LIMIT_S = 300.0

Fault = Callable[[str], None]


def ignore(line: Mapping[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pi")


@pytest.fixture(scope="module")
def pi(folder: Path) -> Iterator[SshSettings]:
    if not TOOL.is_file():
        pytest.skip(f"no fake-pi at {TOOL}; set FAKE_PI to its path")
    up = subprocess.run([TOOL, "up", folder], capture_output=True, text=True)
    if up.returncode == CANNOT:
        pytest.skip(up.stderr.strip().splitlines()[-1])
    assert up.returncode == 0, up.stderr
    said = dict(line.split("=", 1) for line in up.stdout.splitlines())
    yield SshSettings(
        kind="ssh",
        host=said["host"],
        port=int(said["port"]),
        user=said["user"],
        key=Path(said["key"]),
        known_hosts=Path(said["known_hosts"]),
    )
    subprocess.run([TOOL, "down", folder], check=True)


@pytest.fixture
def fault(folder: Path, pi: SshSettings) -> Iterator[Fault]:
    """Inject a fault; all of them are mended after the test."""

    def inject(name: str) -> None:
        subprocess.run([TOOL, "fault", folder, name], check=True, capture_output=True)

    yield inject
    for cure in ("thaw", "oldkey", "free", "python", "cool"):
        inject(cure)


def job(path: str, **settings: Any) -> dict[str, Any]:
    return {"models": [{"name": "net", "path": path}], **QUICK, **settings}


def test_it_is_what_it_says(pi: SshSettings) -> None:
    with SshDevice("pi5", pi) as device:
        facts = device.run_probe({"ask": "facts"}, time_limit_s=LIMIT_S, report=ignore)
    assert facts["machine"]["architecture"] == "aarch64"
    assert "Raspberry Pi 5" in facts["machine"]["board"]
    assert facts["machine"]["kind"] == "raspberry_pi"
    assert facts["state"]["pi_throttled"] == 0
    assert facts["state"]["clock_khz"]
    assert facts["runtimes"]["onnxruntime"]["versions"]
    assert facts["runtimes"]["torch"]["versions"] is None


def test_two_models_are_measured_there_and_compute_the_same(
    pi: SshSettings, conv_model: ConvModel
) -> None:
    options = ProfileOptions(**QUICK, time_limit_s=LIMIT_S)
    models = {"wide": conv_model(8), "narrow": conv_model(4)}
    result = profile(models, device="pi5", options=options, devices={"pi5": pi})
    assert [one.name for one in result.latencies] == ["wide", "narrow"]
    assert result.speedups[0].blocks >= QUICK["min_blocks"]
    x = np.random.RandomState(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    for facts, path in zip(result.answer["models"], models.values(), strict=True):
        (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
        # The bytes may differ between processors; the numbers may not.
        assert facts["outputs"][0]["mean"] == pytest.approx(expected.astype(float).mean(), rel=1e-5)
        assert facts["outputs"][0]["shape"] == list(expected.shape)


def test_a_full_disk_is_said_and_the_next_run_works(
    pi: SshSettings, fault: Fault, tmp_path: Path
) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(os.urandom(1 << 20) * 8)
    with SshDevice("pi5", pi) as device:
        fault("full")
        with pytest.raises(DeviceError, match=r"'pi5': the disk is full: 8\.4 MB were to go to"):
            device.place(path)
        fault("free")
        there = device.place(path)
        hashes = device.run_probe(
            {"ask": "files", "paths": [there, f"{there}.part"]}, time_limit_s=LIMIT_S, report=ignore
        )["sha256"]
    assert hashes[there] is not None
    assert hashes[f"{there}.part"] is None


def test_no_python_and_no_runtime(pi: SshSettings, fault: Fault, conv_model: ConvModel) -> None:
    fault("noort")
    with SshDevice("pi5", pi) as device:
        there = device.place(conv_model(4))
        with pytest.raises(
            DeviceError, match=r"cannot import the runtime.*pip install onnxruntime"
        ):
            device.run_probe(job(there), time_limit_s=LIMIT_S, report=ignore)
        fault("nopython")
        with pytest.raises(DeviceError, match=r"cannot start Python as 'python3'"):
            device.run_probe(job(there), time_limit_s=LIMIT_S, report=ignore)


def test_a_changed_host_key(pi: SshSettings, fault: Fault) -> None:
    fault("newkey")
    with pytest.raises(DeviceError, match="is not the one in"), SshDevice("pi5", pi):
        pass


def test_a_cut_link_leaves_nothing_running(
    pi: SshSettings, fault: Fault, conv_model: ConvModel, folder: Path
) -> None:
    cuts = iter(["cut"])

    def cut(line: Mapping[str, Any]) -> None:
        for name in cuts:
            fault(name)

    with SshDevice("pi5", pi) as device:
        there = device.place(conv_model(8))
        work = job(there, min_time_s=600)
        with pytest.raises(DeviceError, match=r"'pi5': .*connection"):
            device.run_probe(work, time_limit_s=LIMIT_S, report=cut)
    end = time.monotonic() + 60
    while True:
        ps = subprocess.run([TOOL, "ssh", folder, "ps ax"], capture_output=True, text=True)
        if "probe-" not in ps.stdout and ps.returncode == 0:
            break
        assert time.monotonic() < end, ps.stdout
        time.sleep(0.5)
    with SshDevice("pi5", pi) as device:
        answer = device.run_probe(job(there), time_limit_s=LIMIT_S, report=ignore)
    assert answer["status"] == "ok"


def test_a_board_that_freezes_is_noticed(pi: SshSettings, fault: Fault) -> None:
    began = time.monotonic()
    with SshDevice("pi5", pi) as device:
        fault("freeze")
        with pytest.raises(DeviceError, match=r"'pi5': .*connection"):
            device.run_probe({"ask": "facts"}, time_limit_s=LIMIT_S, report=ignore)
    assert time.monotonic() - began < 60


def test_heat_during_a_measurement_taints_it(
    pi: SshSettings, fault: Fault, conv_model: ConvModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_probe = SshDevice.run_probe
    heat = iter(["throttle"])

    def heated(self: SshDevice, asked: Any, *, time_limit_s: float, report: Any) -> Any:
        def watched(line: Mapping[str, Any]) -> None:
            if line["stage"] == "measure":
                for name in heat:
                    fault(name)
            report(line)

        return run_probe(self, asked, time_limit_s=time_limit_s, report=watched)

    monkeypatch.setattr(SshDevice, "run_probe", heated)
    options = ProfileOptions(**{**QUICK, "min_time_s": 3.0}, time_limit_s=LIMIT_S)
    result = profile([conv_model(4)], device="pi5", options=options, devices={"pi5": pi})
    text = " ".join(result.tainted)
    assert "throttled" in text or "under-voltage" in text
    assert "clock" in text
