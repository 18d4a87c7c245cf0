"""The run's folder: never overwritten, written whole, with a log."""

import hashlib
import logging

import pytest

from prune2deploy.errors import RecipeError
from prune2deploy.pipeline.folder import RunFolder, sha256_of


def test_without_output_the_first_free_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [RunFolder.create(None, "parts").path.name for _ in range(3)]
    assert names == ["parts", "parts-2", "parts-3"]
    assert (tmp_path / "runs" / "parts-3").is_dir()


def test_output_is_made_with_its_parents(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b", "parts")
    assert folder.path == tmp_path / "a" / "b"


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "out", "parts")
    folder.write("recipe.yaml", "name: parts\n")
    with pytest.raises(RecipeError, match=r"already holds a run.*[Nn]ame another"):
        RunFolder.create(tmp_path / "out", "parts")
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "name: parts\n"


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RecipeError, match="is a file"):
        RunFolder.create(tmp_path / "out", "parts")
    assert (tmp_path / "out").read_text() == "mine"


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
