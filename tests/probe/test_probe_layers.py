"""The ask "layers": times per node from the runtime's own profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_onnx import ConvModel, save

from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.probe.layers import by_run, collect, of_whole_us
from prune2deploy.probe.saved_graph import read_nodes

SHORT = {"runs": 20, "min_time_s": 0.01, "warmup_min_s": 0.01, "warmup_max_s": 0.1}


def ask(folder: Path, *models: Path, **settings: Any) -> dict[str, Any]:
    """The answer of the probe as it is sent to a device, whose temporary folder this is."""
    program = folder / "probe.pyz"
    program.write_bytes(probe_bytes())
    listed = [{"name": path.stem, "path": str(path)} for path in models]
    job = {"ask": "layers", "models": listed, "lock": None, **SHORT, **settings}
    (folder / "tmp").mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"TMPDIR": str(folder / "tmp"), "PATH": ""},
        cwd=folder,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.read())
    return answer


def left_behind(folder: Path) -> list[Path]:
    """What is in the temporary folder, without a file of the runtime's own, which is hidden."""
    return [path for path in (folder / "tmp").iterdir() if not path.name.startswith(".")]


def test_every_node_has_its_figures_and_no_file_is_left(
    conv_model: ConvModel, tmp_path: Path
) -> None:
    model = conv_model(16, [1, 3, 32, 32])
    files = sorted(tmp_path.iterdir())
    answer = ask(tmp_path, model)
    assert answer["status"] == "ok"
    (facts,) = answer["models"]
    convolutions = [node for node in facts["nodes"] if node["op"] == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        assert 0 < node["q1"] <= node["median"] <= node["q3"]
        assert node["provider"] == "CPUExecutionProvider"
        assert node["output_shapes"] == [{"dtype": "float", "shape": [1, 16, 32, 32]}]
    assert facts["nodes"][-1]["outputs"] == ["y"]
    assert facts["runs"] >= 20
    assert facts["plain_run_us"]["median"] > 0
    # What takes place inside of nodes is less than all; 5 % for the figures' rounding.
    total = sum(node["median"] for node in facts["nodes"])
    assert total <= 1.05 * facts["profiled_run_us"]["median"]
    assert facts["outside_nodes_us"]["q1"] >= 0
    assert len(json.dumps(facts)) < 5000
    assert left_behind(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "probe.pyz", tmp_path / "tmp"])


def test_a_bad_model_is_refused_as_in_a_measurement_and_no_file_is_left(
    conv_model: ConvModel, unknown_operator_model: Path, tmp_path: Path
) -> None:
    error = ask(tmp_path, conv_model(4), unknown_operator_model)["error"]
    assert (error["kind"], error["model"]) == ("unsupported_operator", "frob")
    assert "Frobnicate" in error["message"]
    assert left_behind(tmp_path) == []


def test_another_runtime_is_refused(conv_model: ConvModel, tmp_path: Path) -> None:
    error = ask(tmp_path, conv_model(4), runtime="torch")["error"]
    assert error["kind"] == "not_as_asked"
    assert "models with torch" in error["message"]


def event(name: str, ts: int, dur: int, index: int = 0) -> dict[str, Any]:
    args = {"op_name": "Op", "node_index": str(index)}
    return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": args}


def run_event(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur}


@pytest.mark.parametrize(
    ("samples", "middle"),
    [
        ([3.0] * 6 + [4.0] * 4, 3.3333),  # most of those in [2.5, 3.5) lie before the middle
        ([3.0] * 4 + [4.0] * 6, 3.6667),
        ([5.0] * 9, 5.0),
        ([3.0, 4.0] * 5, 3.5),
        ([10.0, 20.0, 30.0], 20.0),
        ([7.0], 7.0),
        ([0.0, 0.0, 9.0], 0.25),
    ],
)
def test_medians_of_whole_microseconds_lie_between_them(
    samples: list[float], middle: float
) -> None:
    found = of_whole_us(samples)
    assert found["median"] == pytest.approx(middle, abs=1e-3)
    assert found["q1"] <= found["median"] <= found["q3"]


def test_nodes_belong_to_the_run_that_ends_behind_them() -> None:
    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9},
        event("a_fence_before", 10, 0),  # older versions have such
        event("a_kernel_time", 10, 5),
        event("b_kernel_time", 15, 1, 1),
        run_event(9, 8),
        event("a_kernel_time", 20, 7),
        run_event(19, 9),
    ]
    runs = by_run(events)
    assert [[node["name"] for node in nodes] for _, nodes in runs] == [
        ["a_kernel_time", "b_kernel_time"],
        ["a_kernel_time"],
    ]
    a, b = collect(runs).values()
    assert (a["name"], a["op"], a["index"], a["by_run"]) == ("a", "Op", 0, {0: 5, 1: 7})
    assert (b["name"], b["index"], b["by_run"]) == ("b", 1, {0: 1})


def test_nodes_of_a_branch_are_part_of_the_outer_one() -> None:
    events = [
        event("inner_kernel_time", 12, 3),
        event("if_kernel_time", 10, 8, 1),
        event("next_kernel_time", 18, 0, 2),  # starts in the microsecond in which the other ended
        run_event(9, 12),
    ]
    ((_, nodes),) = by_run(events)
    assert [node["name"] for node in nodes] == ["if_kernel_time", "next_kernel_time"]


def test_nodes_are_read_as_the_onnx_package_reads_them(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inside"])],
        "branch",
        [],
        [helper.make_empty_tensor_value_info("inside")],
    )
    weight = helper.make_tensor("w", TensorProto.FLOAT, [100, 3], [0.5] * 300)
    nodes = [
        helper.make_node("If", ["c"], ["z"], name="ø" * 200, then_branch=branch),
        helper.make_node("Gemm", ["z", "w", ""], ["y"], alpha=0.5),
    ]
    path = save(tmp_path / "m.onnx", nodes, [1, 3], [weight], TensorProto.FLOAT)
    expected = [
        {"op": node.op_type, "inputs": list(node.input), "outputs": list(node.output)}
        for node in onnx.load(path).graph.node
    ]
    assert read_nodes(str(path)) == expected
    assert [node["op"] for node in expected] == ["If", "Gemm"]


def test_what_is_no_protobuf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\x0f" * 20)
    with pytest.raises(ValueError, match="wire type 7"):
        read_nodes(str(path))
