"""Engines and timings that are kept: when they are used again, and why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from building import Install, engine
from engine_models import write_model


def test_an_engine_is_used_again(install: Install, tmp_path: Path) -> None:
    trt, _ = install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32")
    first = engine(path)
    assert not first["reused"]
    assert first["reason"] == "there was no engine for it"
    trt.done.clear()
    again = engine(path)
    assert trt.done == {}
    assert again == {**first, "reused": True, "reason": None}
    assert Path(again["path"]).stat().st_size == again["size_bytes"]


def test_an_engine_for_another_place_is_not_used(install: Install, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "fp32")
    install("10.3.0.26")
    first = engine(path)
    for version, gpu, changed in [
        ("10.16.1.11", {}, "version was 10.3.0.26 and is 10.16.1.11"),
        ("10.3.0.26", {"gpu": "Thor"}, "gpu was Orin and is Thor"),
        ("10.3.0.26", {"compute_capability": "8.6"}, "compute_capability was 8.7"),
        ("10.3.0.26", {"sm_count": 8}, "sm_count was 16 and is 8"),
        ("10.3.0.26", {"driver": "12.8"}, "driver was 12.6 and is 12.8"),
    ]:
        install(version, **gpu)
        record = engine(path)
        assert not record["reused"]
        assert record["path"] != first["path"]
        assert changed in record["reason"]
    install("10.3.0.26")
    assert engine(path)["reused"]
    for options in ({"sparse": True}, {"workspace_mb": 8}, {"optimization_level": 2}):
        record = engine(path, **options)
        assert not record["reused"]
        assert record["reason"] == "there was no engine for it"
    write_model(path, "fp32", channels=4)
    assert engine(path)["reason"] == "there was no engine for it"


def cut(file: Path, about: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change(file: Path, about: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def lose(file: Path, about: Path) -> None:
    about.unlink()


def spoil(file: Path, about: Path) -> None:
    about.write_text("{")


def swap(file: Path, about: Path) -> None:
    found = json.loads(about.read_text())
    found["facts"]["gpu"] = "another"
    about.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (cut, "bytes, not"),
        (change, "has been changed"),
        (lose, "no readable JSON"),
        (spoil, "no readable JSON"),
        (swap, "about another engine"),
    ],
)
def test_an_unsound_engine_is_built_again(
    spoiled: Callable[[Path, Path], None], reason: str, install: Install, tmp_path: Path
) -> None:
    trt, _ = install("10.3.0.26")
    path = write_model(tmp_path / "m.onnx", "fp32")
    file = Path(engine(path)["path"])
    content = file.read_bytes()
    spoiled(file, file.with_suffix(".json"))
    trt.done.clear()
    record = engine(path)
    assert trt.done
    assert not record["reused"]
    assert reason in record["reason"]
    assert file.read_bytes() == content
    assert engine(path)["reused"]


def test_timings_are_kept_for_one_version_and_gpu(install: Install, tmp_path: Path) -> None:
    first, second = (write_model(tmp_path / f"{c}.onnx", "fp32", channels=c) for c in (4, 8))
    install("10.3.0.26")
    assert engine(first)["timing_cache"] == "new"
    assert engine(second)["timing_cache"] == "used"
    install("10.16.1.11")
    assert engine(first)["timing_cache"] == "new"
    install("10.3.0.26", gpu="Thor")
    assert engine(first)["timing_cache"] == "new"
    files = list((tmp_path / "engines").glob("timing-*.cache"))
    assert len(files) == 3
    for file in files:
        file.write_bytes(b"of somewhere else")
    assert engine(second)["timing_cache"] == "refused"
    assert engine(second)["reused"]
