"""The command explain: what it calls, what it prints, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from prune2deploy.latency.explain import Cause, Explanation
from prune2deploy.pipeline import explaining

Call = Callable[..., Result]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str | None]]:
    """Answers instead of profiling; returns what it was called with."""
    found: list[tuple[Path, str | None]] = []

    def explain_run(folder: Path, device: str | None) -> Explanation:
        found.append((folder, device))
        causes = (Cause("added", 0.5), Cause("rest", 0.0))
        return Explanation(
            "pi", 2.0, 1.0, 1.0, 0.5, 1.0, causes, (), ("Do this.",), ("A note.",), 8
        )

    monkeypatch.setattr(explaining, "explain_run", explain_run)
    return found


def test_the_sentence_comes_first_and_the_actions_after_the_table(
    call: Call, calls: list[tuple[Path, str | None]]
) -> None:
    result = call("explain", "runs/x", "--on", "pi")
    assert result.exit_code == 0
    assert calls == [(Path("runs/x"), "pi")]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("MACs promised 2.00 times, 1.00 were measured; most is lost to:")
    assert lines[-2:] == ["1. Do this.", "A note."]
    assert "█" in result.stdout


def test_a_picture_is_written_and_json_stays_json(
    call: Call, calls: list[tuple[Path, str | None]], tmp_path: Path
) -> None:
    picture = tmp_path / "why.svg"
    result = call("explain", "runs/x", "--picture", picture, "--json")
    assert calls == [(Path("runs/x"), None)]
    assert picture.read_text().startswith("<svg")
    assert result.stdout.startswith("{")
    assert f"Wrote {picture}" in result.stderr
    assert call("explain", "runs/x", "--picture", "why.png").exit_code == 2


def test_a_folder_that_is_no_run_is_one_message(call: Call, tmp_path: Path) -> None:
    result = call("explain", tmp_path)
    assert result.exit_code == 1
    assert f"error: {tmp_path} is no folder of a finished run" in result.stderr
    assert "Traceback" not in result.output


def test_a_device_that_is_unknown_is_one_message(call: Call, tmp_path: Path) -> None:
    for name in ("original.onnx", "pruned.onnx", "metrics.json"):
        (tmp_path / name).write_bytes(b"")
    result = call("explain", tmp_path, "--on", "no-such-board")
    assert result.exit_code == 1
    assert "error: No device is named 'no-such-board'" in result.stderr
