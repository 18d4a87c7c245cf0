from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prune2deploy.latency import Latency, ProfileOptions, ProfileResult, Speedup, format_result


def latency(name: str) -> Latency:
    return Latency(
        name=name,
        path=Path("m.onnx"),
        batch=1,
        samples=500,
        median_ms=1.2345,
        median_ci95_ms=(1.2111, 1.2666),
        p90_ms=1.5432,
        p90_ci95_ms=(1.5111, 1.5777),
        p95_ms=1.6543,
        p95_ci95_ms=None,
        p99_ms=None,
        p99_ci95_ms=None,
        missing={"p99": "needs 662 samples, there are 500"},
        mean_ms=1.25,
        std_ms=0.1,
        throughput_per_s=800,
        load_ms=12.34,
        first_run_ms=3.21,
        warmup_runs=10,
        warmup_settled=True,
        peak_memory_mb=70.4,
        model_memory_mb=12,
        energy_mj=None,
        net_energy_mj=None,
        file_size_mb=1,
        sha256="ab",
    )


def result(*names: str, tainted: tuple[str, ...] = ()) -> ProfileResult:
    return ProfileResult(
        device="[pi]",
        options=ProfileOptions(threads=2),
        latencies=tuple(latency(name) for name in names),
        speedups=tuple(Speedup(names[0], name, 1.5, 1.48, 1.52, 20) for name in names[1:]),
        tainted=tainted,
        answer={},
    )


def shown(of: ProfileResult, width: int, *, styles: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=styles)
    console.print(format_result(of), markup=False)
    text = console.export_text(styles=styles)
    assert all(len(line) <= width for line in text.splitlines()) or styles
    return text


def test_a_wide_terminal_shows_every_percentile_with_its_interval() -> None:
    text = shown(result("a", "b"), 160)
    assert "[pi]: 2 thread(s), ms per batch [95 % interval]" in text
    for cell in ("1.234 [1.211, 1.267]", "1.543 [1.511, 1.578]", "1.654 [unknown]"):
        assert text.count(cell) == 2
    assert "needs 662 samples, there are 500" in text
    assert "1.500 [1.480, 1.520]" in text
    assert "wider terminal" not in text
    assert "TAINTED" not in text


@pytest.mark.parametrize("name", ["b", "mobilenet_v2_pruned_half", "a_name_as_long_as" * 4])
def test_80_columns_show_median_and_p90_whole(name: str) -> None:
    text = shown(result("a", name), 80)
    assert text.count("1.234") == text.count("1.543") == 2
    assert text.count("[1.211, 1.267]") == text.count("[1.511, 1.578]") == 2
    assert "[1.480, 1.520]" in text
    assert "…" not in text
    for left_out in ("p95", "p99"):
        assert left_out in text, "a column, or the line that says where it is"


def test_no_width_breaks_a_figure() -> None:
    of = result("a", "mobilenet_v2_pruned_half")
    for width in range(72, 180, 3):
        text = shown(of, width)
        for whole in ("[1.211, 1.267]", "[1.511, 1.578]"):
            assert text.count(whole) == 2, width
        assert "[1.480, 1.520]" in text, width


def test_what_does_not_fit_is_named() -> None:
    text = shown(result("a", "b"), 60)
    assert "p95 and p99: in a wider terminal" in text
    assert "[1.511, 1.578]" in text


def test_details_have_energy_where_it_is_known() -> None:
    plain = result("a", "b")
    assert "energy" not in shown(plain, 80)
    assert "70" in shown(plain, 80)
    one = replace(plain.latencies[0], energy_mj=12.34, net_energy_mj=4.567, peak_memory_mb=None)
    text = shown(replace(plain, latencies=(one, plain.latencies[1])), 80)
    assert "energy mJ" in text
    assert "12.3 (4.57)" in text
    assert text.count("unknown") >= 2, "the memory of one, the energy of the other"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_every_reason_of_a_taint_has_a_line(width: int) -> None:
    reasons = ("the clock of policy0 went from 2.40 to 1.00 GHz", "memory was swapped [1]")
    lines = shown(result("a", tainted=reasons), width).splitlines()
    assert [line.strip() for line in lines if line.startswith("TAINTED: ")] == [
        f"TAINTED: {reason}" for reason in reasons
    ]


def test_a_taint_is_bold_yellow() -> None:
    assert "\x1b[1;33mTAINTED: it swapped" in shown(
        result("a", tainted=("it swapped",)), 80, styles=True
    )
