"""Files and devices that say little and mean much: refused before memory or disk is full."""

from __future__ import annotations

import json
import struct
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text

from prune2deploy.cli import output
from prune2deploy.cli.session import tell_error
from prune2deploy.data.base import BadImageError
from prune2deploy.data.sources.imagefolder import ImageFiles
from prune2deploy.data.sources.npz import _read
from prune2deploy.devices import LocalSettings, following, local
from prune2deploy.devices.following import Follower, read_answer
from prune2deploy.devices.local import LocalDevice
from prune2deploy.errors import DataError, DeviceError, ModelError
from prune2deploy.models.checkpoint import load_state_dict_file
from prune2deploy.printable import printable, printable_json

ZEROS = bytes(1 << 20)


def bomb(path: Path, name: str, megabytes: int) -> Path:
    """A small archive with a member that is large."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(megabytes):
            member.write(ZEROS)
    return path


def test_a_checkpoint_that_inflates_is_refused(tmp_path: Path) -> None:
    path = bomb(tmp_path / "weights.pth", "archive/data.pkl", 128)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match=r"its [\d,]+ bytes say that they become 134,217,728"):
        load_state_dict_file(path)


def test_arrays_that_no_memory_is_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "images.npz", "x_train.npy", 8)
    monkeypatch.setattr("os.sysconf", lambda name: 1024)  # a machine of 1 MiB
    with pytest.raises(DataError, match=r"arrays of 0\.0 GB, and this machine has 0\.0 GB"):
        _read(path)


def test_arrays_that_there_is_memory_for_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", x_train=np.zeros((4000, 28, 28), np.uint8))
    assert _read(tmp_path / "images.npz")["x_train"].shape == (4000, 28, 28)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_an_image_that_says_it_is_enormous_is_named(tmp_path: Path, side: int) -> None:
    """12,000 squared is between the size that Pillow warns of and the one that it refuses."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    files = ImageFiles([str(path)], np.zeros(1, np.int64))
    with pytest.raises(BadImageError, match=r"large\.png"):
        files[0]


def probe(tmp_path: Path, body: str) -> LocalSettings:
    """A Python that runs this, whatever it is given to run."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n" + textwrap.dedent(body))
    script.chmod(0o755)
    return LocalSettings(python=str(script))


def ignore(line: object) -> None:
    pass


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (following, local):
        monkeypatch.setattr(room, "MAX_ANSWER", 1 << 16)
    monkeypatch.setattr(local, "_LOOK_S", 0.05)
    monkeypatch.setattr(local, "_GRACE_S", 0.5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("between", ["sys.stderr.write('x' * 1000)", "pass"])
def test_an_answer_without_end_is_given_up(tmp_path: Path, between: str) -> None:
    endless = f"""
        import sys
        while True:
            sys.stdout.write("x" * 10000)
            {between}
    """
    with (
        LocalDevice(settings=probe(tmp_path, endless)) as device,
        pytest.raises(DeviceError) as told,
    ):
        device.run_probe({"ask": "facts"}, time_limit_s=60, report=ignore)
    assert "the answer is larger than" in str(told.value)
    assert len(str(told.value)) < 20_000


@pytest.mark.usefixtures("small")
def test_a_flood_of_progress_ends_with_the_time(tmp_path: Path) -> None:
    flood = """
        import sys
        while True:
            sys.stderr.write("y" * 100000)
    """
    with LocalDevice(settings=probe(tmp_path, flood)) as device, pytest.raises(DeviceError) as told:
        device.run_probe({"ask": "facts"}, time_limit_s=1.5, report=ignore)
    assert "did not end within 1.5 s" in str(told.value)
    assert len(str(told.value)) < 20_000


HOSTILE = "board\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp"


def test_what_devices_say_holds_no_control_characters() -> None:
    answer = json.dumps({"status": "ok", "machine": {"cpu_model": HOSTILE}, "path": "a\\u001b"})
    raw = answer.replace("board", "b\x9board")
    found = read_answer("pi", raw, 0, Follower("pi", ignore))
    assert found["machine"]["cpu_model"] == printable(HOSTILE).replace("board", "b\ufffdoard")
    assert found["path"] == "a\\u001b"  # a backslash and letters, as they were
    follower = Follower("pi", ignore)
    follower.line(HOSTILE + "\n")
    assert "\x1b" not in follower.last_words()


def test_json_keeps_its_meaning() -> None:
    values = {"a": ["\n\t", "ü\\b", 'quote "', "\\", "\u20ac"], "b": 1.5}
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False, indent=1)):
        assert json.loads(printable_json(text)) == values
    assert json.loads(printable_json(json.dumps("\b\f\r\x00"))) == "\ufffd" * 4


def test_nothing_hostile_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(HOSTILE, output.table(["name"], [[HOSTILE]]), Text(HOSTILE))
    tell_error(HOSTILE)
    said = capsys.readouterr()
    for character in "\x1b\x07\x9b\u202e":
        assert character not in said.out + said.err
    assert said.out.count("owned") == 3
