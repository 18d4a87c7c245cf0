"""The probe as a program: one job in, one answer out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import QUICK, ConvModel, save

from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.probe.job import ASKS, COMMON, Refusal
from prune2deploy.probe.measuring import warm_up
from prune2deploy.probe.onnx_runtime import OnnxRuntime

DEFAULTS = {**COMMON, **ASKS["measure"]}
two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


@pytest.fixture(scope="module", autouse=True)
def _program(tmp_path_factory: pytest.TempPathFactory) -> None:
    global PROBE
    PROBE = tmp_path_factory.mktemp("probe") / "probe.pyz"
    PROBE.write_bytes(probe_bytes())


PROBE = Path()


def start() -> subprocess.Popen[str]:
    """Start the probe as it is sent to a device."""
    return subprocess.Popen(
        [sys.executable, PROBE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(process: subprocess.Popen[str], job: dict[str, Any]) -> dict[str, Any]:
    """Give it its job and wait for the answer. Standard input stays open for as long."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process, tempfile.TemporaryFile("w+") as log:
        pump = threading.Thread(target=shutil.copyfileobj, args=(process.stderr, log))
        pump.start()
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.read())
        code = process.wait()
        pump.join()
        log.seek(0)
        assert code == {"ok": 0, "error": 1}[answer["status"]], log.read()
    return answer


def ask(*models: Path, **settings: Any) -> dict[str, Any]:
    """The answer to a short measurement."""
    listed = [{"name": f"m{i}", "path": str(path)} for i, path in enumerate(models)]
    job = {"models": listed, "lock": None, **QUICK, "energy_s": 0}
    return answered(start(), {**job, **settings})


def refusal(*models: Path, **settings: Any) -> dict[str, Any]:
    answer = ask(*models, **settings)
    assert answer["status"] == "error"
    error: dict[str, Any] = answer["error"]
    return error


def test_every_model_has_its_samples_and_its_facts(conv_model: ConvModel) -> None:
    path = conv_model(8)
    answer = ask(path, conv_model(4))
    for index, model in enumerate(answer["models"]):
        samples = [s for t in answer["turns"] if t["model"] == index for s in t["samples_ns"]]
        assert len(samples) >= QUICK["min_samples"]
        assert sum(samples) >= QUICK["min_time_s"] * 1e9
        assert min(samples) > 0
        assert model["load_ns"] > 0
        assert model["first_run_ns"] > 0
        assert model["peak_memory_kb"] >= model["base_memory_kb"] > 1000
        assert model["warmup"]["time_s"] >= QUICK["warmup_min_s"]
    first = answer["models"][0]
    assert first["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert first["size_bytes"] == path.stat().st_size
    assert first["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16]}]
    assert first["outputs"][0]["shape"] == [1, 8, 16, 16]
    assert answer["versions"]["onnxruntime"] == onnxruntime.__version__
    assert set(answer["state"]) == {"start", "warm", "end"}
    assert answer["machine"]["cpus_allowed"] == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_are_mirrored_and_come_in_reversed_pairs(conv_model: ConvModel, count: int) -> None:
    answer = ask(*[conv_model(2, name=f"{i}.onnx") for i in range(count)])
    turns = answer["turns"]
    blocks = [
        [turn["model"] for turn in turns[i : i + 2 * count]]
        for i in range(0, len(turns), 2 * count)
    ]
    numbers = [turn["block"] for turn in turns]
    assert Counter(numbers) == dict.fromkeys(range(len(blocks)), 2 * count)
    assert numbers == sorted(numbers)
    assert len(blocks) >= QUICK["min_blocks"]
    for even, odd in zip(blocks[::2], blocks[1::2], strict=True):
        assert sorted(even[:count]) == list(range(count))
        assert even[count:] == even[:count][::-1]
        assert odd[:count] == even[:count][::-1]
        assert odd[count:] == odd[:count][::-1]
    assert all(turn["settle_runs"] >= 1 for turn in turns)
    per_turn = {(turn["model"], len(turn["samples_ns"])) for turn in turns}
    assert len(per_turn) == count, "the calls per turn are fixed, whatever they take"


def test_order_and_input_are_drawn_with_the_seed(conv_model: ConvModel) -> None:
    models = conv_model(2), conv_model(4)
    answers = [ask(*models, seed=seed) for seed in (1, 1, 2)]
    blocks = 2 * QUICK["min_blocks"] * len(models)
    orders = [[turn["model"] for turn in a["turns"]][: int(blocks)] for a in answers]
    outputs = [[m["outputs"][0]["sha256"] for m in a["models"]] for a in answers]
    assert orders[0] == orders[1] != orders[2]
    assert outputs[0] == outputs[1] != outputs[2]


def test_the_output_is_that_of_the_model_on_the_seeded_input(conv_model: ConvModel) -> None:
    path = conv_model(4)
    fact = ask(path, seed=5)["models"][0]["outputs"][0]
    x = np.random.RandomState(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    assert fact["mean"] == pytest.approx(float(expected.mean(dtype=np.float64)), rel=1e-4)
    assert fact["finite"] is True


@two_cpus
def test_threads_and_their_cpus_are_as_asked_and_read_back(conv_model: ConvModel) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    answer = ask(conv_model(4), threads=2, pin=[second, first], spinning=False)
    setup = answer["models"][0]["setup"]
    assert answer["cpus"] == [second, first]
    assert setup["providers"] == ["CPUExecutionProvider"]
    assert (setup["threads"], setup["workers"], setup["worker_cpus"]) == (2, 1, [str(first)])
    assert setup["config"]["session.intra_op.allow_spinning"] == "0"
    assert setup["config"]["session.intra_op_thread_affinities"] == str(first + 1)


@two_cpus
def test_nothing_is_pinned_when_that_is_asked(conv_model: ConvModel) -> None:
    answer = ask(conv_model(4), threads=2, pin=None)
    assert answer["cpus"] is None
    assert answer["models"][0]["setup"]["workers"] == 1
    assert "session.intra_op_thread_affinities" not in answer["models"][0]["setup"]["config"]


@pytest.mark.parametrize("settings", [{"threads": 10_000}, {"pin": [99_999]}, {"pin": [0, 0]}])
def test_cpus_that_are_not_to_be_had_are_refused(
    conv_model: ConvModel, settings: dict[str, Any]
) -> None:
    error = refusal(conv_model(4), **settings)
    assert error["kind"] == "not_as_asked"
    assert "Ask for fewer threads" in error["message"]


def opened(path: Path, threads: int = 1) -> OnnxRuntime:
    job = {**DEFAULTS, "threads": threads}
    runtime = OnnxRuntime({"name": "m", "path": str(path)}, job, None)
    runtime.open()
    runtime.run()
    return runtime


def test_another_provider_than_asked_is_refused(
    conv_model: ConvModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = opened(conv_model(4))
    assert runtime.check()["workers"] == 0
    monkeypatch.setattr(runtime.session, "get_providers", lambda: ["AzureExecutionProvider"])
    with pytest.raises(Refusal, match=r"asked \['CPUExecution.*got \['AzureExecution"):
        runtime.check()


def test_fewer_worker_threads_than_asked_are_refused(conv_model: ConvModel) -> None:
    runtime = opened(conv_model(4), threads=3)
    runtime.own_threads.pop()
    with pytest.raises(Refusal, match="workers: asked 2, got 1"):
        runtime.check()


def test_a_dynamic_batch_needs_a_number(conv_model: ConvModel) -> None:
    path = conv_model(4, ["N", 3, 16, 16])
    error = refusal(path)
    assert error["kind"] == "dynamic_shape"
    assert "['N', 3, 16, 16]" in error["message"]
    assert "Give a batch size" in error["message"]
    assert ask(path, batch=4)["models"][0]["outputs"][0]["shape"] == [4, 4, 16, 16]


def test_other_dynamic_dimensions_are_refused_whatever_the_batch(conv_model: ConvModel) -> None:
    error = refusal(conv_model(4, [1, 3, "H", "W"]), batch=1)
    assert error["kind"] == "dynamic_shape"


def test_a_fixed_batch_is_not_changed(conv_model: ConvModel) -> None:
    error = refusal(conv_model(4), batch=8)
    assert error["kind"] == "not_as_asked"
    assert "batch 8 was asked for" in error["message"]


def test_a_bad_model_is_named(
    conv_model: ConvModel, unknown_operator_model: Path, tmp_path: Path
) -> None:
    good = conv_model(4)
    error = refusal(good, unknown_operator_model)
    assert (error["kind"], error["model"]) == ("unsupported_operator", "m1")
    assert "Frobnicate" in error["message"]
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    error = refusal(text, good)
    assert (error["kind"], error["model"]) == ("not_onnx", "m0")
    error = refusal(good, tmp_path / "absent.onnx")
    assert (error["kind"], error["model"]) == ("missing", "m1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tim_s": 1}, "unknown keys in the job: min_tim_s"),
        ({"format": 99}, "job format 99"),
        (
            {"runtime": "abacus"},
            "no runtime named 'abacus'; known: onnxruntime, tensorrt, tensorrt_rtx",
        ),
        ({"threads": 0}, "at least one model and one thread"),
        ({"models": []}, "at least one model and one thread"),
    ],
)
def test_a_bad_job_is_refused(
    conv_model: ConvModel, settings: dict[str, Any], message: str
) -> None:
    error = refusal(conv_model(4), **settings)
    assert error["kind"] == "bad_job"
    assert message in error["message"]


def test_sigint_ends_it_with_an_answer(conv_model: ConvModel) -> None:
    model = {"name": "m", "path": str(conv_model(4))}
    job = {"models": [model], "lock": None, **QUICK, "min_time_s": 600}
    with start() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        assert any('"stage": "measure"' in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert json.loads(process.stdout.read()) == {"format": 2, "status": "interrupted"}
        assert process.wait(10) == 130


def test_it_ends_when_nobody_waits_any_more(conv_model: ConvModel) -> None:
    job = {"models": [{"name": "m", "path": str(conv_model(4))}], **QUICK, "min_time_s": 600}
    with start() as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps({**job, "lock": None}) + "\n")
        process.stdin.flush()
        assert any('"stage": "measure"' in line for line in process.stderr)
        process.stdin.close()
        assert process.wait(10) == 130


def test_warm_up_says_whether_it_settled() -> None:
    calls = 0

    def ever_slower() -> None:
        nonlocal calls
        calls += 1
        for _ in range(100 * calls):
            pass

    job = {"warmup_min_s": 0.01, "warmup_max_s": 0.05, "warmup_tolerance": 0.0}
    warm = warm_up(ever_slower, job)
    assert warm["settled"] is False
    assert warm["runs"] == calls
    assert warm["time_s"] >= 0.05
    assert warm_up(lambda: None, {**job, "warmup_tolerance": 9.0})["settled"] is True


def test_wide_integer_inputs_hold_indices_that_any_table_has(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.float32([[1, 2], [3, 4]]), "table")
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    path = save(tmp_path / "gather.onnx", nodes, [50], [table], TensorProto.INT64)
    output = ask(path)["models"][0]["outputs"][0]
    assert output["shape"] == [50, 2]
    assert 1.5 < output["mean"] < 3.5
