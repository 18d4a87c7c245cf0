"""verify sees every change; signatures are of one key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from prune2deploy.artifact import new_key, sign, verify
from prune2deploy.artifact.manifest import ArtifactFile, hashed, read_manifest
from prune2deploy.cli import app
from prune2deploy.errors import ExportError


def problem(dist: Path, **asked: object) -> str:
    (found,) = verify(dist, **asked).problems  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("name", ["model.onnx", "labels.json", "example.py", "measured.json"])
def test_a_changed_byte_is_seen(dist: Path, name: str) -> None:
    raw = bytearray((dist / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (dist / name).write_bytes(raw)
    assert problem(dist) == f"{name} was changed: its sha256 is not the one of manifest.json"


def test_other_changes_are_named(dist: Path) -> None:
    (dist / "labels.json").unlink()
    (dist / "deep").mkdir()
    (dist / "deep" / "more.txt").write_text("x")
    (dist / "README.md").write_text("short")
    found = verify(dist).problems
    assert "labels.json is missing" in found
    assert "deep/more.txt is not in manifest.json" in found
    assert any(one.startswith("README.md has 5 bytes") for one in found)


def test_a_link_is_no_file(dist: Path) -> None:
    content = dist.parent / "elsewhere"
    content.write_bytes((dist / "labels.json").read_bytes())
    (dist / "labels.json").unlink()
    (dist / "labels.json").symlink_to(content)
    assert problem(dist) == "labels.json is missing"


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/../../b", "a\\b", "c:x", "", "manifest.json"]
)
def test_no_path_leaves_the_folder(dist: Path, name: str) -> None:
    document = json.loads((dist / "manifest.json").read_text())
    document["files"][name] = document["files"]["model.onnx"]
    (dist / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match="no manifest of prune2deploy"):
        verify(dist)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00\x01"])
def test_a_damaged_manifest_is_one_message(dist: Path, text: str) -> None:
    (dist / "manifest.json").write_text(text)
    result = CliRunner().invoke(app, ["verify", str(dist)])
    assert result.exit_code == 1
    assert "is no manifest of prune2deploy" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_without_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert "There is no manifest.json" in result.stderr


def test_signatures(dist: Path, tmp_path: Path) -> None:
    public = new_key(tmp_path / "key.pem")
    other = new_key(tmp_path / "other.pem")
    assert problem(dist, public_key=public) == "it is not signed, and --key asks for a signature"
    sign(dist, tmp_path / "key.pem")
    assert verify(dist, public_key=public).problems == ()
    assert "is not this key's signature" in problem(dist, public_key=other)
    manifest = (dist / "manifest.json").read_text()
    (dist / "manifest.json").write_text(manifest.replace('"parts"', '"other"'))
    assert "is not this key's signature" in problem(dist, public_key=public)
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    with pytest.raises(ExportError, match="never overwritten"):
        new_key(tmp_path / "key.pem")
    with pytest.raises(ExportError, match="cannot be used as a private key"):
        sign(dist, public)


def test_answers_that_differ_are_seen(dist: Path) -> None:
    held = load_file(dist / "samples.safetensors")
    (name,) = (key for key in held if key != "input")
    held[name] = held[name] + 0.2 * np.abs(held[name]).max()
    save_file(held, dist / "samples.safetensors")
    manifest = read_manifest(dist)
    files = {**manifest.files, "samples.safetensors": hashed(dist / "samples.safetensors")}
    assert isinstance(files["model.onnx"], ArtifactFile)
    text = manifest.model_copy(update={"files": files}).model_dump_json()
    (dist / "manifest.json").write_text(text)
    assert verify(dist).problems == ()
    assert "on local output" in problem(dist, on=["local"])


def test_the_commands(dist: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["sign", str(dist)]).exit_code == 2
    made = run(app, ["sign", str(dist), "--new-key", str(tmp_path / "k.pem")])
    assert made.exit_code == 0
    checked = run(app, ["verify", str(dist), "--key", str(tmp_path / "k.pem.pub")])
    assert checked.exit_code == 0
    assert "signed by this key" in checked.stdout
    (dist / "labels.json").write_text("[]\n")
    refused = run(app, ["verify", str(dist)])
    assert refused.exit_code == 1
    assert "error: labels.json has 3 bytes" in refused.stderr
