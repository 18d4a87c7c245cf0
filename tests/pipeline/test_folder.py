"""The run's folder: never overwritten, written whole, with a log."""

import hashlib
import logging
import os

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.pipeline.folder import RunFolder, sha256_of


def begun(folder: RunFolder, recipe: str) -> RunFolder:
    folder.path.mkdir(parents=True)
    folder.write("recipe.yaml", recipe)
    return folder


def finished(folder: RunFolder, recipe: str) -> RunFolder:
    begun(folder, recipe).write("stages/report.json", "{}")
    return folder


def test_without_output_a_run_of_the_same_recipe_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = begun(RunFolder.choose(None, "parts", "a: 1\n"), "a: 1\n")
    assert first.path == tmp_path / "runs" / "parts"
    assert RunFolder.choose(None, "parts", "a: 1\n") == first
    second = begun(RunFolder.choose(None, "parts", "a: 2\n"), "a: 2\n")
    assert second.path.name == "parts-2"
    # The newest counts: an older run of the same recipe is not gone back to.
    assert RunFolder.choose(None, "parts", "a: 1\n").path.name == "parts-3"
    assert RunFolder.choose(None, "parts", "a: 2\n") == second


def test_what_is_run_again_leaves_a_finished_run_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = finished(RunFolder.choose(None, "parts", "a: 1\n"), "a: 1\n")
    assert RunFolder.choose(None, "parts", "a: 1\n") == first
    assert RunFolder.choose(None, "parts", "a: 1\n", again=True).path.name == "parts-2"
    # Where the user names the folder, that is what is meant.
    assert RunFolder.choose(first.path, "parts", "a: 1\n", again=True) == first


def test_an_empty_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "parts").mkdir(parents=True)
    assert RunFolder.choose(None, "parts", "a: 1\n").path.name == "parts"


def test_output_is_made_with_its_parents(tmp_path):
    folder = RunFolder.choose(tmp_path / "a" / "b", "parts", "a: 1\n")
    assert not folder.path.exists()
    with folder.alone():
        assert folder.path == tmp_path / "a" / "b"
        assert folder.path.is_dir()


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    begun(RunFolder(tmp_path / "out"), "name: parts\n")
    with pytest.raises(RecipeError, match=r"already holds a run.*[Nn]ame another"):
        RunFolder.choose(tmp_path / "out", "parts", "name: other\n")
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "name: parts\n"


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RecipeError, match="is a file"):
        RunFolder.choose(tmp_path / "out", "parts", "")
    assert (tmp_path / "out").read_text() == "mine"


def test_two_runs_at_once_are_one_too_many(tmp_path):
    folder = RunFolder(tmp_path / "out")
    with (
        folder.alone(),
        pytest.raises(RecipeError, match=rf"Another run.*{os.getpid()}.*--output"),
        folder.alone(),
    ):
        pass
    with folder.alone():
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("metrics.json", "old")
    with pytest.raises(UnicodeEncodeError):
        folder.write("metrics.json", "new \udc80")
    assert folder.file("metrics.json").read_text() == "old"


def test_the_log_gets_the_packages_messages_and_then_no_more(tmp_path):
    folder = RunFolder(tmp_path)
    logger = logging.getLogger("prune2deploy.somewhere")
    with folder.logging():
        logger.info("inside")
    logger.info("outside")
    text = folder.file("run.log").read_text()
    assert "INFO prune2deploy.somewhere: inside" in text
    assert "outside" not in text


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "f").write_bytes(content)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()
