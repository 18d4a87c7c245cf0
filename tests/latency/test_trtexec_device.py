"""A device where only trtexec exists: measured by it, and said so wherever a figure is shown."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from tiny_onnx import ConvModel

from prune2deploy.devices.settings import LocalSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions, ResultFolder, profile, profile_devices

PROGRAM = """#!{python}
import json, sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # " + " ".join(sys.argv))
given = dict(a.partition("=")[::2] for a in sys.argv[1:])
if "--exportTimes" in given:
    base = 2.0 if "16" in given["--onnx"] else 1.0
    rows = [dict(h2dMs=0.0, computeMs=base + i % 5 / 1000, d2hMs=0.0, latencyMs=base + i % 5 / 1000)
            for i in range(200)]
    json.dump(rows, open(given["--exportTimes"], "w"))
"""
QUICK = ProfileOptions(min_time_s=1.0)
DEVICES = {"orin": LocalSettings(runtime="trtexec", python=sys.executable)}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = folder / "trtexec"
    path.write_text(PROGRAM.format(python=sys.executable, number=number))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_its_times_are_read_with_flags_and_version(
    conv_model: ConvModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, 8502)
    models = {"wide": conv_model(16), "narrow": conv_model(8)}
    result = profile(models, device="orin", options=QUICK, devices=DEVICES)
    wide, narrow = result.latencies
    assert wide.median_ms == pytest.approx(2.002)
    assert narrow.median_ms == pytest.approx(1.002)
    assert (wide.load_ms, wide.peak_memory_mb, wide.samples) == (None, None, 200)
    assert result.speedups[0].ratio == pytest.approx(2, rel=0.01)
    (reason,) = [one for one in result.tainted if "trtexec" in one]
    assert "trtexec 8.5.2 measured one model after the other" in reason
    assert "--useCudaGraph" in reason
    assert result.answer["versions"] == {"trtexec": "8.5.2"}


def test_what_was_kept_is_not_taken_for_another_version(
    conv_model: ConvModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    models = {"narrow": conv_model(8)}
    folder = ResultFolder(tmp_path, say=said.append)
    for number in (101600, 110000):
        install(tmp_path, monkeypatch, number)
        campaign = profile_devices(models, ["orin"], options=QUICK, devices=DEVICES, folder=folder)
        assert not campaign.failures
    assert campaign.results[0].answer["versions"] == {"trtexec": "11.0.0"}
    assert "measured anew" in said[0]


def test_without_the_program_the_message_says_where_it_comes_from(
    conv_model: ConvModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"no trtexec on PATH.*libnvinfer-bin"):
        profile({"m": conv_model(8)}, device="orin", options=QUICK, devices=DEVICES)
