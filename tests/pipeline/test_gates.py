"""Gates hold only where the measurement shows it."""

import pytest

from prune2deploy.pipeline.gates import check_gates
from prune2deploy.recipe import GatesSection

LATENCY = [
    {
        "device": "local",
        "tainted": [],
        "latencies": [
            {"name": "original", "median_ci95_ms": [9.0, 11.0]},
            {"name": "pruned", "median_ci95_ms": [4.5, 5.5]},
        ],
        "speedups": [{"other": "pruned", "ratio": 2.0, "low": 1.8, "high": 2.2}],
    }
]


def gates_of(latency=LATENCY, not_measured=(), allow_tainted=False, **limits):
    return check_gates(
        GatesSection(**limits),
        metric_before=90.0,
        metric_after=88.5,
        higher_is_better=True,
        latency=latency,
        onnx_bytes=2_500_000,
        not_measured=not_measured,
        allow_tainted=allow_tainted,
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
        "device": "pi5",
        "tainted": [],
        "latencies": [
            {"name": "original", "median_ci95_ms": [9.0, 11.0]},
            {"name": "pruned", "median_ci95_ms": [8.0, 10.0]},
        ],
        "speedups": [{"other": "pruned", "ratio": 1.1, "low": 1.05, "high": 1.2}],
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
    unknown = [
        {
            **LATENCY[0],
            "latencies": [{"name": "original"}, {"name": "pruned", "median_ci95_ms": None}],
        }
    ]
    (gate,) = check_gates(
        GatesSection(max_latency_ms=1000.0),
        metric_before=1,
        metric_after=1,
        higher_is_better=True,
        latency=unknown,
        onnx_bytes=1,
    )
    assert not gate.held


def on(device, *reasons):
    return {**LATENCY[0], "device": device, "tainted": list(reasons)}


def test_a_device_that_was_not_measured_could_be_the_slowest():
    gates = gates_of(
        not_measured=["pi5", "orin"], min_speedup=1.1, max_latency_ms=9.0, max_size_mb=9.0
    )
    assert [(gate.name, gate.held, gate.found) for gate in gates] == [
        ("min_speedup", False, None),
        ("max_latency_ms", False, None),
        ("max_size_mb", True, 2.5),
    ]
    assert gates[0].note == gates[1].note == "not measured on pi5, orin"
    assert gates[2].note is None
    assert [gate.limit for gate in gates] == [1.1, 9.0, 9.0]


def test_without_any_measurement_gates_on_latency_do_not_hold():
    speed, size = gates_of([], not_measured=["local"], min_speedup=1.1, max_size_mb=9.0)
    assert (speed.held, speed.found) == (False, None)
    assert size.held


def test_a_gate_does_not_hold_by_tainted_figures():
    latency = [on("local"), on("pi5", "it was throttled", "swap was used")]
    gates = gates_of(latency, min_speedup=1.1, max_latency_ms=9.0, max_accuracy_drop=5.0)
    held = {gate.name: gate.held for gate in gates}
    assert held == {"max_accuracy_drop": True, "min_speedup": False, "max_latency_ms": False}
    assert gates[1].found == 1.8
    assert gates[1].note == gates[2].note == "tainted on pi5: it was throttled; swap was used"
    assert gates[0].note is None


def test_tainted_figures_can_be_allowed_and_are_still_named():
    latency = [on("pi5", "it was throttled")]
    fast, slow = gates_of(latency, allow_tainted=True, min_speedup=1.1, max_latency_ms=5.0)
    assert (fast.held, slow.held) == (True, False)
    assert fast.note == "tainted on pi5: it was throttled. Allowed by profile.allow_tainted"
