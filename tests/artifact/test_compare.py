"""compare: what is worse than allowed is a regression, what may be is undecided."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from prune2deploy.artifact import compare as module
from prune2deploy.artifact.compare import Tolerance, compare
from prune2deploy.cli import app
from prune2deploy.errors import ExportError
from prune2deploy.pipeline import RunResult


def measured(ratio: float, half: float = 0.01) -> object:
    """A stand-in for profile: the second model is so many times as fast as the first."""

    def profile(models: dict[str, Path], **asked: object) -> object:
        assert list(models) == ["base", "new"]
        faster = SimpleNamespace(ratio=ratio, low=ratio - half, high=ratio + half)
        medians = [SimpleNamespace(median_ms=2.0), SimpleNamespace(median_ms=2.0 / ratio)]
        return SimpleNamespace(speedups=[faster], latencies=medians)

    return profile


@pytest.fixture
def sides(finished: RunResult, tmp_path: Path) -> tuple[Path, Path]:
    return finished.folder, Path(shutil.copytree(finished.folder, tmp_path / "new"))


def change(folder: Path, **values: float) -> None:
    """Change the accuracy of the precision that counts."""
    document = json.loads((folder / "metrics.json").read_text())
    for one in document["precisions"]:
        one["metrics"].update(values)
    (folder / "metrics.json").write_text(json.dumps(document))


def outcomes(base: Path, new: Path, **asked: object) -> dict[str, str]:
    return {row.what: row.outcome for row in compare(base, new, **asked).rows}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "half", "outcome"),
    [
        (1.0, 0.002, "same"),
        (1.2, 0.01, "better"),
        (0.97, 0.01, "worse"),
        (0.96, 0.02, "undecided"),
        (0.9, 0.01, "regression"),
    ],
)
def test_the_interval_decides(
    sides: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    half: float,
    outcome: str,
) -> None:
    monkeypatch.setattr(module, "profile", measured(ratio, half))
    assert outcomes(*sides)["latency on local"] == outcome
    code = {"regression": 3}.get(outcome, 0)
    words = ["compare", *map(str, sides)]
    assert CliRunner().invoke(app, words).exit_code == code
    strict = CliRunner().invoke(app, [*words, "--strict"]).exit_code
    assert strict == (3 if outcome in ("regression", "undecided") else 0)


def test_accuracy_and_size(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "profile", measured(1.0, 0.001))
    base, new = sides
    top1 = json.loads((base / "metrics.json").read_text())["precisions"][0]["metrics"]["top1"]
    assert outcomes(base, new)["top1"] == "same"
    change(new, top1=top1 - 0.4)
    assert outcomes(base, new)["top1"] == "worse"
    change(new, top1=top1 - 0.6)
    assert outcomes(base, new)["top1"] == "regression"
    assert outcomes(base, new, tolerance=Tolerance(accuracy=1))["top1"] == "worse"
    with (new / "pruned.int8.onnx").open("ab") as file:
        file.write(b"\0" * 20_000)
    assert outcomes(base, new)["ONNX file"] == "regression"


def test_a_run_against_its_artifact(finished: RunResult) -> None:
    found = compare(finished.folder, finished.folder / "dist" / "parts", stored=True)
    assert {row.outcome for row in found.rows} <= {"same", "worse", "better", "undecided"}
    assert any(row.what == "latency on local (stored)" for row in found.rows)
    assert not found.regressed


def test_json_has_the_intervals(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "profile", measured(1.2))
    done = CliRunner().invoke(app, ["compare", *map(str, sides), "--json"])
    document = json.loads(done.stdout)
    row = next(one for one in document["rows"] if one["what"] == "latency on local")
    assert (row["low"], row["high"]) == (pytest.approx(1.19), pytest.approx(1.21))
    assert document["regressed"] is False


def test_what_is_neither_a_run_nor_an_artifact(finished: RunResult, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds neither"):
        compare(finished.folder, tmp_path)
