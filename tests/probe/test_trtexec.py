"""TensorRT's own program: its flags per version, its times file, and what may be compared."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.probe.job import Refusal
from prune2deploy.probe.trtexec import (
    arguments_for,
    find_trtexec,
    run_trtexec,
    samples_from,
    version_in,
    why_not_comparable,
)

REMOVED_IN_11 = {"--fp16", "--int8", "--best", "--noDataTransfers", "--useCudaGraph"}

# Refuses what its version does not know, like the real one, and writes times in ms.
PROGRAM = """#!{python}
import json, sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # " + " ".join(sys.argv))
if sys.argv[1:] == ["--help"]:
    sys.exit(0)
given = dict(a.partition("=")[::2] for a in sys.argv[1:])
unknown = sorted(set(given) & set({unknown!r}))
if unknown:
    print("[E] Unknown option: " + " ".join(unknown))
    sys.exit(1)
open(given["--saveEngine"], "w").write("engine")
if "--exportTimes" in given:
    times = [dict(startComputeMs=i, endComputeMs=i + 1.5, h2dMs=0.0, computeMs=1.5 + i, d2hMs=0.25,
                  latencyMs=1.75 + i) for i in range(3)]
    json.dump(times, open(given["--exportTimes"], "w"))
"""


def program(folder: Path, number: int, unknown: set[str]) -> str:
    path = folder / f"trtexec{number}"
    path.write_text(PROGRAM.format(python=sys.executable, number=number, unknown=sorted(unknown)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def request(folder: Path, **more: Any) -> dict[str, Any]:
    wanted = {
        "onnx": str(folder / "m.onnx"),
        "engine": str(folder / "m.engine"),
        "times": str(folder / "times.json"),
        "precision": "fp16",
        "held": "fp16",
    }
    return {**wanted, **more}


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", (8, 5, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec", (8, 6, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b11] # trtexec", (10, 16, 2)),
        ("noise\n&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b7] #", (11, 4, 1)),
    ],
)
def test_its_first_line_tells_the_version(line: str, version: tuple[int, ...]) -> None:
    assert version_in(line) == version


def test_no_version() -> None:
    with pytest.raises(Refusal, match="does not tell its version"):
        version_in("usage: trtexec")


def test_flags_before_and_from_11(tmp_path: Path) -> None:
    old = arguments_for((10, 3, 0), **request(tmp_path), workspace_mb=256)
    new = arguments_for((11, 1, 0), **request(tmp_path), workspace_mb=256)
    assert set(old) - set(new) == {"--fp16", "--noDataTransfers", "--useCudaGraph", "--useSpinWait"}
    assert set(new) < set(old)
    assert not REMOVED_IN_11 & set(new)
    for flags in (old, new):
        assert "--memPoolSize=workspace:256" in flags
        assert f"--exportTimes={tmp_path / 'times.json'}" in flags
        assert "--iterations=100" in flags


@pytest.mark.parametrize(
    ("version", "flag"), [((8, 5, 2), "--buildOnly"), ((8, 6, 1), "--skipInf")]
)
def test_a_build_alone(version: tuple[int, ...], flag: str, tmp_path: Path) -> None:
    flags = arguments_for(version, **request(tmp_path, times=None))
    assert flags[-1].startswith(flag)
    assert not [f for f in flags if "exportTimes" in f or "duration" in f]


@pytest.mark.parametrize(
    ("version", "precision", "held", "flag"),
    [
        ((8, 5, 2), "fp16", "fp32", "--fp16"),
        ((10, 3, 0), "int8", "int8", "--int8"),
        ((10, 3, 0), "fp32", "fp32", None),
        ((11, 1, 0), "int8", "int8", None),
    ],
)
def test_precisions(
    version: tuple[int, ...], precision: str, held: str, flag: str | None, tmp_path: Path
) -> None:
    flags = arguments_for(version, **request(tmp_path, precision=precision, held=held))
    assert [f for f in flags if f in ("--fp16", "--int8")] == ([flag] if flag else [])


@pytest.mark.parametrize(
    ("version", "precision", "held"),
    [((11, 1, 0), "fp16", "fp32"), ((10, 3, 0), "int8", "fp32"), ((10, 3, 0), "fp32", "fp16")],
)
def test_a_precision_that_cannot_be(
    version: tuple[int, ...], precision: str, held: str, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=f"{precision} was asked for, the ONNX file holds {held}"):
        arguments_for(version, **request(tmp_path, precision=precision, held=held))


@pytest.mark.parametrize(("number", "unknown"), [(100300, set()), (110100, REMOVED_IN_11)])
def test_a_run(number: int, unknown: set[str], tmp_path: Path) -> None:
    result = run_trtexec(program(tmp_path, number, unknown), **request(tmp_path))
    assert result["version"] == list(version_in(f"[TensorRT v{number}]"))
    assert result["samples"] == {
        "h2d_ns": [0, 0, 0],
        "compute_ns": [1_500_000, 2_500_000, 3_500_000],
        "d2h_ns": [250_000] * 3,
        "latency_ns": [1_750_000, 2_750_000, 3_750_000],
    }
    assert (tmp_path / "m.engine").read_text() == "engine"
    json.dumps(result)


def test_a_build_has_no_samples(tmp_path: Path) -> None:
    binary = program(tmp_path, 100300, set())
    assert run_trtexec(binary, **request(tmp_path, times=None))["samples"] is None


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    binary = program(tmp_path, 100300, {"--fp16"})
    with pytest.raises(Refusal, match=r"code 1: \[E\] Unknown option: --fp16"):
        run_trtexec(binary, **request(tmp_path))
    with pytest.raises(Refusal, match=r"8\.4\.1 is too old"):
        run_trtexec(program(tmp_path, 8401, set()), **request(tmp_path))
    with pytest.raises(Refusal, match="cannot be started"):
        run_trtexec(str(tmp_path / "none"), **request(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{}", "wrote no times"),
        ("[]", "wrote no times"),
        ('[{"computeMs": 1}]', "h2dMs"),
        ("[1]", "cannot be read"),
    ],
)
def test_a_times_file_that_is_none(text: str, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        samples_from(text)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = program(tmp_path, 100300, set())
    assert find_trtexec((str(tmp_path / "none"), binary)) == binary
    with pytest.raises(Refusal, match="libnvinfer-bin"):
        find_trtexec((str(tmp_path / "none"),))


def result(version: tuple[int, ...], precision: str, folder: Path, **more: Any) -> dict[str, Any]:
    wanted = request(folder, precision=precision, held=precision, **more)
    return {"version": list(version), "flags": arguments_for(version, **wanted)}


def test_versions_before_and_from_11_are_not_compared(tmp_path: Path) -> None:
    ten, eleven = (result(v, "fp16", tmp_path) for v in ((10, 16, 2), (11, 0, 0)))
    for pair in ((ten, eleven), (eleven, ten)):
        assert "seems faster there" in (why_not_comparable(*pair) or "")
    assert why_not_comparable(ten, result((8, 5, 2), "fp16", tmp_path)) is None


def test_other_flags_are_not_compared_but_other_files_and_precisions(tmp_path: Path) -> None:
    one = result((10, 3, 0), "fp32", tmp_path)
    other = result((10, 3, 0), "fp16", tmp_path / "b")
    assert why_not_comparable(one, other) is None
    longer = result((10, 3, 0), "fp32", tmp_path, duration_s=9)
    assert "--duration=5, --duration=9" in (why_not_comparable(one, longer) or "")
