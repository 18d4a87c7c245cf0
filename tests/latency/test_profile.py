from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_onnx import ConvModel

from prune2deploy import progress
from prune2deploy.errors import DeviceError
from prune2deploy.latency import ProfileOptions, ProfileResult, format_result, profile
from prune2deploy.latency.results import block_medians, result_from_answer


def answer_with(turns: list[dict[str, Any]], models: int, **changes: Any) -> dict[str, Any]:
    facts = {
        "inputs": [{"shape": [4, 3, 8, 8]}],
        "load_ns": 5_000_000,
        "first_run_ns": 2_000_000,
        "peak_memory_kb": 2000,
        "base_memory_kb": 500,
        "warmup": {"runs": 9, "settled": True},
        "size_bytes": 1_500_000,
        "sha256": "ab",
        "setup": {},
        **changes,
    }
    setup = dict.fromkeys(("cpus", "versions", "machine", "state"))
    named = [{"name": f"m{i}", **facts} for i in range(models)]
    return {"models": named, "turns": turns, **setup}


def mirrored(blocks: int, per_turn: int, time_ns: Any) -> list[dict[str, Any]]:
    """Turns A B B A; time_ns(model, tick) is what a run takes, tick counts all runs."""
    turns, tick = [], 0
    for block in range(blocks):
        for model in (0, 1, 1, 0):
            samples = [time_ns(model, tick + i) for i in range(per_turn)]
            tick += per_turn
            turns.append({"block": block, "model": model, "samples_ns": samples})
    return turns


def judged(turns: list[dict[str, Any]], **changes: Any) -> ProfileResult:
    paths = {"m0": Path("a.onnx"), "m1": Path("b.onnx")}
    return result_from_answer("local", paths, ProfileOptions(), answer_with(turns, 2, **changes))


def test_figures_have_the_units_in_their_names() -> None:
    result = judged(mirrored(10, 5, lambda model, tick: (4 - 2 * model) * 1_000_000))
    one = result.latencies[0]
    assert (one.median_ms, one.median_ci95_ms) == (4.0, (4.0, 4.0))
    assert (one.mean_ms, one.std_ms) == (4.0, 0.0)
    assert one.samples == 100
    assert one.batch == 4
    assert one.throughput_per_s == pytest.approx(1000.0)  # batches of 4 in 4 ms
    assert (one.load_ms, one.first_run_ms) == (5.0, 2.0)
    assert one.peak_memory_mb == pytest.approx(2.048)
    assert one.model_memory_mb == pytest.approx(1.536)
    assert one.file_size_mb == 1.5
    (speedup,) = result.speedups
    assert (speedup.baseline, speedup.other) == ("m0", "m1")
    assert (speedup.ratio, speedup.low, speedup.high) == pytest.approx((2.0, 2.0, 2.0))
    assert speedup.blocks == 10


def test_percentiles_without_enough_samples_are_none_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    one = judged(mirrored(10, 6, lambda model, tick: int(rng.integers(900, 1100)))).latencies[0]
    assert one.samples == 120
    assert one.p90_ms is not None
    assert (one.p95_ms, one.p99_ms, one.p99_ci95_ms) == (None, None, None)
    assert one.missing["p95"] == "needs 130 samples, there are 120"
    assert one.missing["p99"] == "needs 662 samples, there are 120"


def test_an_interval_that_cannot_be_had_is_none_with_the_reason() -> None:
    # Disturbed in one of ten blocks from its begin to its end: that tells nothing of a p95.
    one = judged(mirrored(10, 8, lambda model, tick: 9000 if tick < 32 else 1000 + tick)).latencies[
        0
    ]
    assert one.p95_ms is not None
    assert one.p95_ci95_ms is None
    assert one.missing["p95_ci95"] == "too few independent samples: measure for longer"


def test_energy_is_in_millijoules() -> None:
    turns = mirrored(10, 5, lambda model, tick: 1000)
    result = judged(turns, energy={"joules_per_run": 0.25, "net_joules_per_run": 0.05})
    assert (result.latencies[0].energy_mj, result.latencies[0].net_energy_mj) == (250.0, 50.0)
    assert result.to_dict()["latencies"][1]["energy_mj"] == 250.0
    assert result.to_dict()["setup"]["energy"][0]["joules_per_run"] == 0.25
    for silent in (judged(turns), judged(turns, energy=None)):
        assert (silent.latencies[0].energy_mj, silent.latencies[0].net_energy_mj) == (None, None)


def test_what_disturbed_it_is_told_and_what_was_watched_is_kept() -> None:
    turns = mirrored(20, 5, lambda model, tick: 1000)
    assert judged(turns).to_dict()["tainted"] == []
    assert "watch" not in judged(turns).to_dict()["setup"]
    answer = answer_with(turns, 2)
    answer["watch"] = [{"at_s": 0.0, "pi_throttled": 1}]
    paths = {"m0": Path("a.onnx"), "m1": Path("b.onnx")}
    result = result_from_answer("local", paths, ProfileOptions(), answer)
    assert len(result.tainted) == 1
    assert result.to_dict()["tainted"] == list(result.tainted)
    assert result.to_dict()["setup"]["watch"] == answer["watch"]


def test_memory_that_could_not_be_read_is_none() -> None:
    turns = mirrored(10, 5, lambda model, tick: 1000)
    one = judged(turns, peak_memory_kb=None, base_memory_kb=None).latencies[0]
    assert (one.peak_memory_mb, one.model_memory_mb) == (None, None)


def test_mirrored_blocks_cancel_a_linear_drift() -> None:
    """Every run is 3 ns slower than the one before; both models are the same."""
    turns = mirrored(12, 7, lambda model, tick: 10_000 + 3 * tick)
    np.testing.assert_allclose(block_medians(turns, 0), block_medians(turns, 1), rtol=1e-12)
    (speedup,) = judged(turns).speedups
    assert (speedup.ratio, speedup.low, speedup.high) == pytest.approx((1, 1, 1))
    # One after the other, the same drift looks like a speed-up of the first over the second.
    late = [turn["samples_ns"] for turn in turns]
    assert np.median(late[24:]) / np.median(late[:24]) > 1.04


def test_a_block_counts_with_the_mean_of_its_turns_medians() -> None:
    samples = [[10, 10, 900], [1, 1, 1], [1, 1, 1], [2, 30, 31]]
    models = [0, 1, 1, 0]
    turns = [
        {"block": 5, "model": model, "samples_ns": ns}
        for model, ns in zip(models, samples, strict=True)
    ]
    assert block_medians(turns, 0).tolist() == [20.0]  # (10 + 30) / 2
    assert block_medians(turns, 1).tolist() == [1.0]


def test_a_warm_up_that_did_not_settle_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    warm = {"runs": 9, "settled": False}
    result = judged(mirrored(10, 5, lambda model, tick: 1000), warmup=warm)
    assert not result.latencies[0].warmup_settled
    assert "'m0' did not settle in 10 s" in caplog.text


class Seen:
    """A listener that notes how far the work went."""

    def __init__(self) -> None:
        self.done = 0.0
        self.infos: list[str | None] = []

    def open(self, label: str, total: float | None) -> Seen:
        assert (label, total) == ("Measuring on local", 1.0)
        return self

    def advance(self, steps: float = 1, info: str | None = None) -> None:
        assert steps >= 0
        self.done += steps
        self.infos.append(info)

    def close(self, task: progress.Task) -> None:
        pass


def test_two_files_are_measured_and_compared(
    conv_model: ConvModel, quick_options: ProfileOptions
) -> None:
    # 64 times the multiplications: no noise makes that the faster one.
    paths = [conv_model(64, [1, 3, 32, 32]), conv_model(8, [1, 3, 32, 32])]
    seen = Seen()
    with progress.use(seen):
        result = profile(paths, options=quick_options)
    wide, narrow = result.latencies
    assert [wide.name, narrow.name] == ["conv64", "conv8"]
    assert wide.path == paths[0]
    assert wide.file_size_mb == pytest.approx(paths[0].stat().st_size / 1e6)
    assert wide.median_ci95_ms is not None
    assert wide.median_ci95_ms[0] <= wide.median_ms <= wide.median_ci95_ms[1]
    (speedup,) = result.speedups
    assert 1 < speedup.low <= speedup.ratio <= speedup.high
    assert seen.done == pytest.approx(1.0)
    assert "alone conv64" in seen.infos  # it may have waited for another measurement first

    document = json.loads(json.dumps(result.to_dict()))
    assert document["latencies"][1]["median_ms"] == narrow.median_ms
    assert document["speedups"][0]["other"] == "conv8"
    assert document["options"]["min_samples"] == quick_options.min_samples
    assert document["setup"]["sessions"][0]["providers"] == ["CPUExecutionProvider"]
    assert "samples_ns" not in json.dumps(document)

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(format_result(result))
    text = console.export_text()
    assert f"{speedup.ratio:.3f} [{speedup.low:.3f}, {speedup.high:.3f}]" in text
    assert f"{wide.median_ms:.4g} [" in text


def test_one_model_has_no_speedup(conv_model: ConvModel, quick_options: ProfileOptions) -> None:
    result = profile({"net": conv_model(4)}, options=quick_options)
    assert [one.name for one in result.latencies] == ["net"]
    assert result.speedups == ()


def test_names_are_unique_where_the_files_are_not(
    conv_model: ConvModel, quick_options: ProfileOptions, tmp_path: Path
) -> None:
    model = conv_model(4)
    (tmp_path / "pruned").mkdir()
    same_stem = tmp_path / "pruned" / model.name
    same_stem.write_bytes(model.read_bytes())
    other = conv_model(2)
    names = [
        one.name
        for one in profile([other, model, same_stem, other], options=quick_options).latencies
    ]
    assert names == ["conv2", str(model), str(same_stem), "conv2 (2)"]


def test_a_missing_file_is_refused_before_anything_is_measured(
    conv_model: ConvModel, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"No model file at .*gone.onnx.*Give the path"):
        profile([conv_model(4), tmp_path / "gone.onnx"])
    with pytest.raises(DeviceError, match="at least one ONNX file"):
        profile([])


def test_what_the_runtime_refuses_comes_back_as_an_error(
    unknown_operator_model: Path, quick_options: ProfileOptions
) -> None:
    with pytest.raises(DeviceError, match=r"model 'frob': .*Frobnicate.*older opset"):
        profile([unknown_operator_model], options=quick_options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threads": 0}, "threads is 0; give at least 1"),
        ({"min_samples": 63}, "min_samples is 63; give at least 64"),
        ({"min_blocks": 9}, "min_blocks is 9; give at least 10"),
        ({"batch": 0}, "batch is 0"),
        ({"min_time_s": 0.0}, "min_time_s is 0.0; give more than 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
    ],
)
def test_options_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        ProfileOptions(**setting)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, prune2deploy.latency\n"
        "print({'numpy', 'scipy', 'torch', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
