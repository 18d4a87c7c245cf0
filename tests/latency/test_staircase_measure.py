"""Having a device time layers: what of its answer is a layer's, and what the runtime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from prune2deploy.devices import load_devices, open_device
from prune2deploy.latency import ProfileOptions
from prune2deploy.latency.staircase.grid import Extent
from prune2deploy.latency.staircase.measure import conditions_of, fill, open_table, prepare
from prune2deploy.latency.staircase.specs import LayerSpec
from prune2deploy.latency.staircase.table import Table
from prune2deploy.latency.staircase.tiny import write_layers

LAYOUT = LayerSpec("layout", size=(112, 112))  # moved in µs, not in parts of one
OPTIONS = ProfileOptions(threads=1)


def moved_by_the_runtime(folder: Path, width: int) -> bool:
    """Whether the runtime's own file has anything between the two convolutions."""
    write_layers(folder / "layers.onnx", LAYOUT, [(width, width)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(
        folder / "layers.onnx", options, providers=["CPUExecutionProvider"]
    )
    nodes = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    first = nodes.index("Conv")
    return nodes[first + 1] != "Conv"


@pytest.mark.parametrize("step", [8, 16, 32])
def test_a_change_of_layout_takes_time_where_the_runtime_makes_one(
    tmp_path: Path, step: int
) -> None:
    with open_device("local", load_devices()) as device:
        table = open_table(device, OPTIONS, tmp_path / "table.json")
        table.step = step  # as if it had been looked for
        fill(table, device, OPTIONS, {LAYOUT: [Extent((64, 64))]})
    half = step // 2
    assert table.times[LAYOUT.key].keys() == {(half, half)}
    taken = table.time(LAYOUT, (half, half)).us
    assert (taken > 0) == moved_by_the_runtime(tmp_path, half)


def test_nothing_narrower_than_half_a_step_is_never_moved(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.json", {}, 16)
    with open_device("local", load_devices()) as device:
        fill(table, device, OPTIONS, {LAYOUT: [Extent((8, 8))]})
    assert not table.times.get(LAYOUT.key)


def test_what_the_profiler_adds_is_found_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with open_device("local", load_devices()) as device:
        table = open_table(device, OPTIONS, path)
        table.step = 16  # as if it had been looked for
        prepare(table, device, OPTIONS)
        again = open_table(device, OPTIONS, path)
        assert again.profiler == table.profiler
        written = path.read_bytes()
        prepare(again, device, OPTIONS)
    assert path.read_bytes() == written
    assert table.profiler is not None
    # ONNX Runtime writes down names and shapes of every node while its clock runs.
    assert 0.2 < table.profiler.inside_us < 50
    assert 0.2 < table.profiler.beside_us < 50


@pytest.mark.parametrize(
    ("machine", "features"),
    [
        ({"kind": "x86", "cpu_flags": ["avx2", "avx512f", "fpu"]}, ["AVX2", "AVX-512"]),
        ({"kind": "x86", "cpu_flags": ["avx2"]}, ["AVX2"]),
        ({"kind": "arm", "cpu_flags": ["asimd", "asimddp"]}, ["NEON", "dotprod"]),
        ({"kind": "jetson", "cpu_flags": ["asimd"]}, ["NEON"]),
        ({"kind": "x86", "cpu_flags": None}, []),
    ],
)
def test_processors_of_one_name_with_other_vectors_have_other_tables(
    machine: dict[str, Any], features: list[str]
) -> None:
    known = {"cpu_model": "AMD EPYC", "board": None, "architecture": "any", **machine}
    found = conditions_of(known, "onnxruntime", "1.32", OPTIONS)
    assert found["features"] == features
    assert found["cpu"] == "AMD EPYC"
