"""Stages are kept, taken from another run, or run again, and the reason is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune2deploy.pipeline.folder import RunFolder
from prune2deploy.pipeline.stages import StageRecord, StageStore, difference, key_of

DEPENDS = {"recipe prune.budget.macs": "0.5", "code": "a" * 64}


def store(folder: Path, *others: Path) -> StageStore:
    folder.mkdir(exist_ok=True)
    return StageStore(RunFolder(folder), others)


def kept(folder: Path, depends: dict[str, str] = DEPENDS, content: str = "weights") -> StageStore:
    found = store(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "pruned.bin").write_text(content)
    found.keep("prune", depends, ["deep/pruned.bin"], {"metrics": {"top1": 90.0}}, 1.23456)
    return found


def test_a_stage_is_kept_while_nothing_changes(tmp_path: Path) -> None:
    found = kept(tmp_path / "run").find("prune", DEPENDS)
    assert found.record is not None
    assert found.record.result == {"metrics": {"top1": 90.0}}
    assert found.record.taken_from is None
    assert found.record.seconds == 1.235


@pytest.mark.parametrize(
    ("depends", "reason"),
    [
        ({**DEPENDS, "recipe prune.budget.macs": "0.4"}, "macs was 0.5 and is 0.4"),
        ({**DEPENDS, "code": "b" * 64}, "code changed"),
        ({**DEPENDS, "recipe prune.train.epochs": "3"}, "prune.train.epochs was added"),
        ({"code": "a" * 64}, "prune.budget.macs was removed"),
    ],
)
def test_a_change_is_named(tmp_path: Path, depends: dict[str, str], reason: str) -> None:
    found = kept(tmp_path / "run").find("prune", depends)
    assert found.record is None
    assert reason in found.reason


def test_many_changes_are_not_all_listed() -> None:
    text = difference({str(n): "1" for n in range(9)}, {str(n): "2" for n in range(9)})
    assert text.endswith("and 6 more changes")


@pytest.mark.parametrize("content", ["weightz", "weights and more", "", None])
def test_a_file_that_is_not_as_written_is_never_used(tmp_path: Path, content: str | None) -> None:
    found = kept(tmp_path / "run")
    file = tmp_path / "run" / "deep" / "pruned.bin"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    result = found.find("prune", DEPENDS)
    assert result.record is None
    assert "deep/pruned.bin" in result.reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": 3}', "\udcff"])
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    found = kept(tmp_path / "run")
    path = tmp_path / "run" / "stages" / "prune.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    result = found.find("prune", DEPENDS)
    assert result.record is None
    assert "damaged" in result.reason


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/../../b", "a\\b"])
def test_a_record_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    found = kept(tmp_path / "run")
    path = tmp_path / "run" / "stages" / "prune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {name: "0" * 64}}))
    assert found.find("prune", DEPENDS).record is None


def test_another_runs_stage_is_copied(tmp_path: Path) -> None:
    kept(tmp_path / "old")
    new = store(tmp_path / "new", tmp_path / "old")
    found = new.find("prune", DEPENDS)
    assert found.record is not None
    assert found.record.taken_from == str(tmp_path / "old")
    assert not (tmp_path / "new" / "deep").exists()
    new.adopt(found.record)
    assert (tmp_path / "new" / "deep" / "pruned.bin").read_text() == "weights"
    again = store(tmp_path / "new", tmp_path / "old").find("prune", DEPENDS)
    assert again.record == found.record
    # What was copied once is this run's own.
    assert (found.elsewhere, again.elsewhere) == (True, False)


def test_another_runs_damaged_stage_is_not(tmp_path: Path) -> None:
    kept(tmp_path / "old")
    (tmp_path / "old" / "deep" / "pruned.bin").write_text("other")
    found = store(tmp_path / "new", tmp_path / "old").find("prune", DEPENDS)
    assert found.record is None
    assert "unlike in old" in found.reason


def test_what_follows_changes_only_with_the_files(tmp_path: Path) -> None:
    def content(folder: str, depends: dict[str, str], text: str) -> str:
        kept(tmp_path / folder, depends, text)
        record = store(tmp_path / folder).find("prune", depends).record
        assert isinstance(record, StageRecord)
        return record.content

    first = content("a", DEPENDS, "weights")
    assert content("b", {**DEPENDS, "code": "b" * 64}, "weights") == first
    assert content("c", DEPENDS, "others") != first


def test_a_key_knows_names_and_values() -> None:
    keys = {key_of(one) for one in ({"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"})}
    assert len(keys) == 4
    assert key_of({"a": "1", "b": "2"}) == key_of({"b": "2", "a": "1"})


def test_a_stage_that_is_forgotten_is_run_again(tmp_path: Path) -> None:
    found = kept(tmp_path / "run")
    found.forget("prune")
    assert found.find("prune", DEPENDS).record is None
