"""A search on the digits from the recipe to a run, and other points of its front."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prune2deploy.cli import app
from prune2deploy.errors import SearchError
from prune2deploy.pipeline import RunOptions, RunResult, run_recipe, run_until
from prune2deploy.recipe import Recipe, parse_recipe
from prune2deploy.search import SearchRecord, read_record

pytest.importorskip("optuna")

RECIPE = """
name: small
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none, val: 0.2}
pretrain: {epochs: 2, lr: 0.1, precision: fp32}
prune:
  method: l1
  BUDGET
  search: {trials: 14, images: 100, recalibrate: 2SEARCH}
profile: {min_time_s: 0.1, retries: 0}
"""


def recipe(budget: str = "", search: str = "") -> Recipe:
    text = RECIPE.replace("BUDGET", budget).replace("SEARCH", f", {search}" if search else "")
    return parse_recipe(text, "small.yaml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(runs: Path) -> RunResult:
    return run_recipe(recipe(), runs / "small")


@pytest.fixture(scope="module")
def record(result: RunResult) -> SearchRecord:
    return read_record(result.folder / "search.json")


def test_the_front_is_kept_drawn_and_listed(result: RunResult, record: SearchRecord) -> None:
    assert len(record.tried) == 14
    assert {"search.json", "pareto.svg"} <= set(result.metrics.files)
    summary = (result.folder / "summary.md").read_text()
    for point in record.front:
        assert f"| {point.number} | {point.accuracy:.2f} |" in summary
    assert "the knee of the front" in summary
    search = result.metrics.search
    assert search is not None
    assert (search.cost, search.tried, search.reason) == ("macs", 14, "the knee of the front")
    taken = next(one for one in search.front if one.point == search.point)
    assert taken.macs == result.metrics.after.macs
    assert record.judged_on == "val"


def test_the_front_is_no_worse_than_scores_and_uniform_ratios(record: SearchRecord) -> None:
    starts = [one for one in record.tried if one.start]
    assert {one.start.split()[0] for one in starts if one.start} == {"uniform", "scores"}
    for start in starts:
        assert any(p.accuracy >= start.accuracy and p.cost <= start.cost for p in record.front)


def test_the_network_has_the_widths_of_the_point(result: RunResult, record: SearchRecord) -> None:
    kept = {choice.group: choice.kept for choice in result.metrics.pruning.groups}
    (point,) = [one for one in record.front if one.widths == kept]
    assert result.metrics.after.macs == point.macs


def test_another_point_is_finished_without_a_search(
    result: RunResult, record: SearchRecord, runs: Path
) -> None:
    said: list[str] = []
    wanted = record.front[0]
    other = run_recipe(
        recipe(search=f"point: {wanted.number}"), runs / "point", RunOptions(say=said.append)
    )
    assert any(text.startswith("search: taken from another run") for text in said)
    assert other.metrics.after.macs == wanted.macs != result.metrics.after.macs
    assert read_record(other.folder / "search.json") == record


def test_the_budget_takes_the_best_point_that_holds_it(runs: Path, result: RunResult) -> None:
    wide = "shares: [0.1, 1.0]"
    folder = run_until(recipe("budget: {macs: 0.4}", wide), "prune", runs / "budget")
    record = read_record(folder / "search.json")
    macs = result.metrics.before.macs
    best = [one for one in record.front if one.macs <= 0.4 * macs][-1]
    plan = json.loads((folder / "stages" / "prune.json").read_text())
    assert f"Point {best.number} of" in (folder / "plan.json").read_text()
    assert plan["result"]["stage"] == "cut"


def test_a_point_without_an_earlier_search_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="Run the recipe without --point first"):
        run_until(recipe(search="point: 1"), "search", tmp_path / "alone")


def test_the_command_line_takes_a_run_for_its_recipe_and_refuses_wrong_points(
    result: RunResult, runs: Path
) -> None:
    words = ["run", str(result.folder), "--point", "99", "--output", str(runs / "wrong")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "--point 99: the front of this search has the points 1 to" in done.stderr
    assert not (runs / "wrong").exists()
