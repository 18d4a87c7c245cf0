"""The command report, and what profile --layers keeps for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import write_networks, write_run
from typer.testing import Result

from prune2deploy.latency import kept, layers
from prune2deploy.pipeline.folder import sha256_of

Call = Callable[..., Result]


def test_one_run_gets_its_page_and_several_get_one(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    result = call("report", folders[0])
    assert result.exit_code == 0
    assert result.stdout == f"Wrote {folders[0] / 'report.html'}\n"
    assert (folders[0] / "report.html").is_file()
    monkeypatch.chdir(tmp_path)
    assert call("report", *folders).exit_code == 0
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text()
    assert call("report", *folders, "--output", tmp_path / "other.html").exit_code == 0
    assert (tmp_path / "other.html").is_file()


def test_a_folder_without_a_run_is_one_message(call: Call, tmp_path: Path) -> None:
    result = call("report", tmp_path)
    assert result.exit_code == 1
    assert f"error: {tmp_path} is no folder of a finished run" in result.stderr
    assert "Traceback" not in result.stderr


def test_times_of_layers_are_kept_with_the_hashes_of_their_files(
    call: Call, tmp_path: Path
) -> None:
    write_networks(tmp_path)
    models = [tmp_path / "original.onnx", tmp_path / "pruned.onnx"]
    result = call("profile", *models, "--layers", "--min-time", "0.1", "--output", tmp_path)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / kept.LAYERS_FOLDER / "local.json").read_text())
    assert record["sha256"] == [sha256_of(path) for path in models]
    assert [one["name"] for one in record["layers"]][:1] == ["a"]
    assert all(len(one["times"]) == 2 for one in record["layers"])
    assert record["device"] == "local"


def test_layers_are_not_measured_for_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = layers.LayersResult("local", layers.ProfileOptions(), (), (), (), {})
    with pytest.raises(kept.DeviceError, match="there is a file of that name"):
        kept.keep_layers(result, tmp_path / "file")
