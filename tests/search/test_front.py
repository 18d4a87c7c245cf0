"""The front of points, its knee, and the point that holds a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from prune2deploy.errors import SearchError
from prune2deploy.report import write_front
from prune2deploy.search import (
    FrontPoint,
    SearchRecord,
    Tried,
    best_within,
    knee,
    pareto,
    read_record,
)


def points(*figures: tuple[float, float]) -> list[FrontPoint]:
    return [
        FrontPoint(
            number=n, trial=10 + n, accuracy=a, cost=c, macs=int(c), params=1, widths={"a": n}
        )
        for n, (a, c) in enumerate(figures, 1)
    ]


FRONT = points((10, 100), (80, 200), (90, 500), (92, 1000))


def record(front: list[FrontPoint] = FRONT) -> SearchRecord:
    tried = [Tried(trial=p.trial, accuracy=p.accuracy, cost=p.cost) for p in front]
    tried.append(Tried(trial=1, accuracy=50, cost=400, start="uniform at 40.0%"))
    return SearchRecord.model_validate(
        {
            "study": "s",
            "method": "l1",
            "sampler": "tpe",
            "metric": "top1",
            "higher_is_better": True,
            "judged_on": "val",
            "images": 10,
            "cost": {"name": "macs", "unit": "MACs"},
            "original": {"trial": -1, "accuracy": 93, "cost": 2000},
            "front": front,
            "tried": tried,
        }
    )


def test_only_what_nothing_beats_is_on_the_front() -> None:
    tried = [(1, 5), (2, 5), (2, 9), (3, 9), (1, 1), (0, 2), (3, 9)]
    assert pareto(tried, lambda t: t[0], lambda t: t[1]) == [(1, 1), (2, 5), (3, 9)]


def test_the_knee_is_where_more_cost_begins_to_bring_little() -> None:
    assert knee(FRONT, True).number == 2
    lower_is_better = points((-10, 100), (-80, 200), (-90, 500), (-92, 1000))
    assert knee(lower_is_better, False).number == 2
    assert knee(FRONT[:2], True).number == 2
    assert knee(FRONT[:1], True).number == 1


def test_the_best_within_a_budget() -> None:
    assert best_within(FRONT, lambda p: p.cost <= 500, "macs: 0.25").number == 3
    with pytest.raises(SearchError, match=r"None of the 4 points .* the budget macs: 0\.01"):
        best_within(FRONT, lambda p: p.cost < 1, "macs: 0.01")


def test_a_wrong_number_is_told_with_what_is_there() -> None:
    assert record().point(3) == FRONT[2]
    with pytest.raises(SearchError) as err:
        record().point(7)
    assert "--point 7: the front of this search has the points 1 to 4" in str(err.value)
    assert "2 (top1 80.00, 200 MACs, 10.0%)" in str(err.value)


def test_the_record_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text(record().model_dump_json())
    assert read_record(path) == record()
    path.write_text(record().model_dump_json().replace('"front"', '"back"'))
    with pytest.raises(SearchError, match="cannot be read"):
        read_record(path)
    with pytest.raises(SearchError, match="no search was finished"):
        read_record(tmp_path / "other.json")


def test_the_chart_has_every_point_and_always_the_same_bytes(tmp_path: Path) -> None:
    write_front(record(), tmp_path / "a.svg")
    write_front(record(), tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    for word in ("top1 before training", "MACs", "front", "original", "start: all groups alike"):
        assert word in text
    assert "start: by scores" not in text  # there was none
