"""JUnit XML and the step summary, from metrics."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_run import metrics

from prune2deploy.errors import RecipeError
from prune2deploy.report import GateResult, LatencyFailure
from prune2deploy.report.ci import junit_xml, tell_ci

HELD = GateResult(name="max_size_mb", held=True, found=1.0, limit=2.0)
FAILED = GateResult(name="min_speedup", held=False, found=1.01, limit=1.5, note="tainted <&>\x1b")


def parsed(**changes: object) -> ElementTree.Element:
    return ElementTree.fromstring(junit_xml(metrics().model_copy(update=changes)))


def test_gates_are_test_cases() -> None:
    suite = parsed(gates=[HELD, FAILED], latency_failures=[])
    assert {k: suite.get(k) for k in ("tests", "failures", "errors")} == {
        "tests": "2",
        "failures": "1",
        "errors": "0",
    }
    held, failed = suite.findall("testcase")
    assert list(held) == []
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "found 1.01, limit 1.5; tainted <&>\ufffd"


def test_a_device_that_was_not_measured_is_an_error() -> None:
    lost = LatencyFailure(device="pi5", message="it is off\nwith details")
    suite = parsed(gates=[], latency_failures=[lost])
    (error,) = suite.iter("error")
    assert error.get("message") == "it is off"
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")


def test_the_summary_goes_where_github_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n")
    (tmp_path / "summary.md").write_text("# parts\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    told = tell_ci(tmp_path, metrics())
    assert page.read_text() == "before\n# parts\n\n"
    assert (tmp_path / "junit.xml").read_text().startswith("<?xml")
    assert str(page) in told[1]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "page.md"))
    with pytest.raises(RecipeError, match="cannot be written"):
        tell_ci(tmp_path, metrics())
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert "summary.md only" in tell_ci(tmp_path, metrics())[1]
