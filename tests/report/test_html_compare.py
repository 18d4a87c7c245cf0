"""The page that compares runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up_run import device, full_run, metrics

from prune2deploy.errors import RecipeError
from prune2deploy.report.html import RunContents, compare_page
from prune2deploy.report.html.compare import Spot, accuracy_warnings, front, latency_warnings


def a_run(folder: str, top1: float = 88.0, **changes: object) -> RunContents:
    found = metrics(**{"latency": [device()], **changes})
    after = found.after.model_copy(update={"metrics": {"top1": top1}})
    return RunContents(folder=folder, metrics=found.model_copy(update={"after": after}))


def test_the_table_has_a_row_per_run_and_the_plots_their_numbers() -> None:
    page = compare_page([a_run("first"), a_run("second", 86.0)])
    for piece in ('<h1 class="headline">2 runs compared</h1>', "first", "second", "86.00"):
        assert piece in page
    assert "-4.00 [" in page
    for axis in ("latency on local, ms", "multiply-accumulates, millions", "ONNX file, MB"):
        assert f"top1 against {axis}" in page
    assert "the figures are comparable" in page
    page = compare_page([a_run("first"), a_run("second", latency=[device(tainted=("hot",))])])
    assert "The figures on local of second are tainted." in page
    assert "the figures are comparable" not in page


def test_latencies_of_other_days_are_not_comparable_in_milliseconds() -> None:
    other_day = replace(a_run("b"), measured={"local": "2026-01-03T00:00:00+00:00"})
    (told,) = latency_warnings([a_run("a"), other_day])
    assert "measured on different days (2026-01-02, 2026-01-03): compare the speed-ups" in told


def test_latencies_of_other_machines_and_devices_are_not_comparable() -> None:
    assert latency_warnings([a_run("a"), a_run("b")]) == []
    elsewhere = device()
    elsewhere["setup"]["machine"] = {"cpu_model": "Another"}
    (told,) = latency_warnings([a_run("a"), a_run("b", latency=[elsewhere])])
    assert "measured on different machines (A Processor; Another): neither" in told
    threads = device()
    threads["options"] = {"threads": 4}
    (told,) = latency_warnings([a_run("a"), a_run("b", latency=[threads])])
    assert "onnxruntime 1.20, 1 thread(s), batch 1; onnxruntime 1.20, 4 thread(s)" in told
    (told,) = latency_warnings([a_run("a"), a_run("b", latency=[device("pi5")])])
    assert told.startswith("No device measured all runs")
    (told,) = latency_warnings([a_run("a"), a_run("b", latency=[device(tainted=("hot",))])])
    assert told == "The figures on local of b are tainted."


def test_other_data_and_other_originals_are_named() -> None:
    assert accuracy_warnings([a_run("a"), a_run("b")]) == []
    data = {"source": "x", "images": {"test": 9}}
    (told,) = accuracy_warnings([a_run("a"), a_run("b", data=data)])
    assert "judged on different data" in told
    other = metrics().before.model_copy(update={"metrics": {"top1": 91.0}})
    (told,) = accuracy_warnings([a_run("a"), a_run("b", before=other)])
    assert "different weights of the same network" in told
    other = metrics().before.model_copy(update={"macs": 1})
    (told,) = accuracy_warnings([a_run("a"), a_run("b", before=other)])
    assert "started from different networks" in told


def test_seeds_are_put_together() -> None:
    page = compare_page([a_run("a", 88.0), a_run("b", 87.0, seed=1), a_run("c", 86.0, seed=2)])
    assert "87.00 ± 1.00" in page
    assert "86.00 to 88.00" in page
    assert "Over seeds" not in compare_page([a_run("a"), a_run("b")])


def test_other_metrics_are_refused() -> None:
    other = metrics().model_dump()
    for figures in (other["before"], other["after"], *other["stages"]):
        figures["metrics"] = {"iou": 0.5}
    run = RunContents(folder="b", metrics=metrics(**{**other, "metric": "iou"}))
    with pytest.raises(RecipeError, match="a is judged by top1 and b by iou"):
        compare_page([a_run("a"), run])


def test_hostile_names_stay_text_and_bytes_stay_the_same() -> None:
    runs = [full_run("<script>$x"), full_run("<img src=x>")]
    page = compare_page(runs)
    assert "<script" not in page
    assert "<img" not in page
    assert page == compare_page(runs)


def test_the_front_is_what_no_other_beats() -> None:
    def spot(number: int, cost: float, gain: float) -> Spot:
        return Spot(number, "l1", cost, gain, (9.0, 99.0))

    spots = [spot(1, 3, 90), spot(2, 1, 80), spot(3, 2, 79), spot(4, 3, 91), spot(5, 4, 91)]
    assert [one.number for one in front(spots, higher_is_better=True)] == [2, 4]
    assert [one.number for one in front(spots, higher_is_better=False)] == [2, 3]
