"""Gates hold only where the measurement shows it."""

import pytest

from prune2deploy.pipeline.gates import check_gates
from prune2deploy.recipe import GatesSection

LATENCY = [
    {
        "latencies": [
            {"median_ci95_ms": [9.0, 11.0]},
            {"median_ci95_ms": [4.5, 5.5]},
        ],
        "speedups": [{"ratio": 2.0, "low": 1.8, "high": 2.2}],
    }
]


def gates_of(**limits):
    return check_gates(
        GatesSection(**limits),
        metric_before=90.0,
        metric_after=88.5,
        higher_is_better=True,
        latency=LATENCY,
        onnx_bytes=2_500_000,
    )


def test_a_gate_that_is_not_set_is_not_checked():
    assert gates_of() == []


@pytest.mark.parametrize(
    ("name", "limit", "found", "held"),
    [
        ("max_accuracy_drop", 1.5, 1.5, True),
        ("max_accuracy_drop", 1.4, 1.5, False),
        ("min_speedup", 1.8, 1.8, True),
        ("min_speedup", 1.9, 1.8, False),  # 2.0 was found, but 1.8 is all that is shown
        ("max_latency_ms", 5.5, 5.5, True),
        ("max_latency_ms", 5.0, 5.5, False),  # the upper end of the median's interval counts
        ("max_size_mb", 2.5, 2.5, True),
        ("max_size_mb", 2.4, 2.5, False),
    ],
)
def test_each_gate_compares_the_cautious_end_of_its_figure(name, limit, found, held):
    (gate,) = gates_of(**{name: limit})
    assert (gate.name, gate.held, gate.limit) == (name, held, limit)
    assert gate.found == pytest.approx(found)


def test_a_drop_of_a_metric_that_should_be_low_is_its_rise():
    (gate,) = check_gates(
        GatesSection(max_accuracy_drop=0.1),
        metric_before=0.5,
        metric_after=0.75,
        higher_is_better=False,
        latency=LATENCY,
        onnx_bytes=1,
    )
    assert gate.found == pytest.approx(0.25)
    assert not gate.held


def test_the_slowest_device_decides():
    slow = {
        "latencies": [{"median_ci95_ms": [9.0, 11.0]}, {"median_ci95_ms": [8.0, 10.0]}],
        "speedups": [{"ratio": 1.1, "low": 1.05, "high": 1.2}],
    }
    speed, time = check_gates(
        GatesSection(min_speedup=1.5, max_latency_ms=6.0),
        metric_before=1,
        metric_after=1,
        higher_is_better=True,
        latency=[*LATENCY, slow],
        onnx_bytes=1,
    )
    assert (speed.found, speed.held) == (1.05, False)
    assert (time.found, time.held) == (10.0, False)


def test_a_median_without_an_interval_shows_nothing():
    unknown = [{"latencies": [{}, {"median_ci95_ms": None}], "speedups": [{"low": 2.0}]}]
    (gate,) = check_gates(
        GatesSection(max_latency_ms=1000.0),
        metric_before=1,
        metric_after=1,
        higher_is_better=True,
        latency=unknown,
        onnx_bytes=1,
    )
    assert not gate.held
