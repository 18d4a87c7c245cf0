"""Why a lower precision is not faster: told from what the file and the device show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prune2deploy.report import Metrics, PrecisionFigures
from prune2deploy.report.not_faster import not_faster
from prune2deploy.report.saturation import saturating

VNNI = ["avx2", "avx512_vnni"]


def figures(precision: str = "int8", **layers: int) -> PrecisionFigures:
    return PrecisionFigures(
        precision=precision,
        file="x.onnx",
        metrics={},
        onnx_bytes=1,
        layers=layers or {"int8": 20},
        kept={f"layer{n}": "why" for n in range(layers.get("fp32", 0))},
        max_rel_difference=0.0,
        agreement=None,
    )


def speedup(name: str, ratio: float) -> dict[str, Any]:
    return {"other": name, "ratio": ratio, "low": ratio - 0.05, "high": ratio + 0.05}


def told(
    one: PrecisionFigures, lower: float, flags: list[str] | None = VNNI, **changes: Any
) -> list[str]:
    """fp32 is 1.5 times as fast as the original."""
    speedups = [speedup("pruned", 1.5), speedup(f"pruned {one.precision}", lower)]
    return not_faster(run_of(one, flags, speedups=speedups, **changes))


def run_of(one: PrecisionFigures, flags: list[str] | None, **changes: Any) -> Metrics:
    """What the reasons are read from."""
    machine = {"cpu_flags": flags, "kind": "x86" if flags and "avx2" in flags else "arm"}
    setup = {"machine": machine, "versions": {"onnxruntime": "1"}}
    measured = {"device": "pi5", "tainted": [], "setup": setup, **changes}
    return cast(Metrics, SimpleNamespace(latency=[measured], precisions=[one]))


def test_what_is_faster_needs_no_reason() -> None:
    assert told(figures(), 1.7) == []


@pytest.mark.parametrize(
    ("lower", "words"), [(1.55, "is not faster than"), (1.2, "is slower than")]
)
def test_what_is_not_is_told(lower: float, words: str) -> None:
    (line,) = told(figures(), lower)
    assert f"int8 {words} fp32 on pi5: {lower:.2f} times" in line
    assert "profile --layers" in line


def test_layers_in_fp32_are_named() -> None:
    (line,) = told(figures(int8=16, fp32=4), 1.2)
    assert "4 of its 20 layers compute in fp32 (layer0, layer1, layer2, …)" in line
    assert "--layers" not in line


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [(["avx2"], True), (VNNI, False), (["asimddp"], False), (["asimd"], True), (None, False)],
)
def test_a_processor_without_int8_is(flags: list[str] | None, lacks: bool) -> None:
    (line,) = told(figures(), 1.2, flags)
    assert ("no instructions that multiply int8" in line) == lacks


def test_fp16_on_a_cpu_saves_room_only() -> None:
    (line,) = told(figures("fp16", fp16=20), 1.5)
    assert "saves room there, not time" in line


def test_a_tainted_measurement_is_a_reason() -> None:
    (line,) = told(figures(), 1.2, tainted=["throttled"])
    assert "The measurement is tainted." in line


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        (["avx2"], True),
        (["avx2", "avx512f"], True),
        (VNNI, False),
        (["avx2", "amx_tile"], False),
        (["asimd"], False),
        (None, False),
    ],
)
def test_int8_that_saturates_is_told_wherever_it_is_measured(
    flags: list[str] | None, saturates: bool
) -> None:
    lines = saturating(run_of(figures(), flags))
    assert len(lines) == saturates
    assert all(line.startswith("int8 on pi5: large sums saturate") for line in lines)


def test_nothing_else_saturates() -> None:
    assert saturating(run_of(figures("fp16", fp16=20), ["avx2"])) == []
    engine = {"machine": {"cpu_flags": ["avx2"], "kind": "x86"}, "versions": {"tensorrt": "10"}}
    assert saturating(run_of(figures(), ["avx2"], setup=engine)) == []
