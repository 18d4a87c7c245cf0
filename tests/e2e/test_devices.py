"""A run on several devices: one is measured under bad conditions, one is not there."""

import io
import json
from pathlib import Path

import pytest
from fake_profile import measured
from rich.console import Console
from typer.testing import CliRunner

from prune2deploy.cli import app
from prune2deploy.devices import LocalSettings, SshSettings
from prune2deploy.errors import DeviceError
from prune2deploy.latency import campaign
from prune2deploy.pipeline import deploy, run_recipe
from prune2deploy.recipe import parse_recipe
from prune2deploy.report import Metrics, results_table, summary_markdown

RECIPE = """
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: none}
pretrain: {epochs: 1, lr: 0.1, precision: fp32}
prune: {method: l1, budget: {macs: 0.5}}
profile: {on: [pi5, local, desk], retries: 0, allow_tainted: true}
gates: {min_speedup: 0.001, max_latency_ms: 100000}
"""
MESSAGE = "Device 'pi5': no answer within 15 s. Is it switched on?"
REASON = "the clock went down from 2400 to 1500 MHz"


@pytest.fixture(scope="module")
def fake_devices():
    """local is measured; so is desk, under bad conditions; pi5 is not there."""

    def measure(models, *, device, options, devices):
        if device == "pi5":
            raise DeviceError(f"{MESSAGE}\n  said the network")
        tainted = (REASON,) if device == "desk" else ()
        return measured(models, device=device, options=options, devices=devices, tainted=tainted)

    known = {
        "local": LocalSettings(),
        "desk": LocalSettings(threads=2),
        "pi5": SshSettings(kind="ssh", host="pi5.lan"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "profile", measure)
        patch.setattr(campaign, "load_devices", lambda: known)
        patch.setattr(deploy, "load_devices", lambda: known)
        yield


def text_of(table):
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def result(fake_devices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_recipe(parse_recipe(RECIPE, folder / "r.yaml"), folder / "out")


def test_the_run_ends_with_what_the_other_devices_measured(result):
    metrics = Metrics.model_validate_json((result.folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert [one["device"] for one in metrics.latency] == ["local", "desk"]
    assert [one["tainted"] for one in metrics.latency] == [[], [REASON]]
    assert [one["options"]["threads"] for one in metrics.latency] == [1, 2]
    (failure,) = result.failures
    assert failure.device == "pi5"
    assert failure.message.startswith(MESSAGE)
    assert MESSAGE in (result.folder / "run.log").read_text()


def test_every_device_has_its_file_of_samples(result):
    names = sorted(path.name for path in (result.folder / "latency").iterdir())
    assert names == ["desk.json", "local.json"]
    assert {"latency/desk.json", "latency/local.json"} <= set(result.metrics.files)
    record = json.loads((result.folder / "latency/desk.json").read_text())
    samples = sum(len(turn["samples_ns"]) for turn in record["answer"]["turns"])
    assert samples == sum(one["samples"] for one in result.metrics.latency[1]["latencies"])


def test_gates_do_not_hold_while_a_device_is_missing(result):
    assert [(gate.name, gate.held, gate.found, gate.note) for gate in result.gates] == [
        ("min_speedup", False, None, "not measured on pi5"),
        ("max_latency_ms", False, None, "not measured on pi5"),
    ]


def test_table_and_summary_say_what_is_tainted_and_what_is_missing(result):
    table = text_of(results_table(result.metrics))
    for text in (table, summary_markdown(result.metrics)):
        rows = [line for line in text.splitlines() if "latency on desk, " in line]
        assert len(rows) == 2
        assert all(row.count("tainted") == 3 for row in rows)
        assert not any(
            "tainted" in line for line in text.splitlines() if "latency on local, " in line
        )
        assert f"latency on desk is tainted, after 1 attempt(s): {REASON}\n" in text.replace(
            " \n", "\n"
        )
        assert f"latency on pi5 was not measured: {MESSAGE}" in text
        assert "said the network" not in text
        assert "1 thread(s) on local, 2 thread(s) on desk" in text
        assert "limit 0.001; not measured on pi5)" in text


def test_the_command_for_the_rest_measures_it_and_nothing_else(result, monkeypatch):
    seen = []

    def measure(models, *, device, **more):
        seen.append(device)
        return measured(models, device=device, **more)

    monkeypatch.setattr(campaign, "profile", measure)
    monkeypatch.setattr(campaign, "load_devices", lambda: {"pi5": LocalSettings()})
    words = result.measure_rest.split()
    assert words[0] == "prune2deploy"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    assert seen == ["pi5"]
    assert Path(result.folder, "latency", "pi5.json").is_file()


def test_the_command_line_ends_with_1_the_message_and_the_command(fake_devices, tmp_path):
    path, out = tmp_path / "r.yaml", tmp_path / "out"
    path.write_text(RECIPE)
    done = CliRunner().invoke(app, ["run", str(path), "--output", str(out)])
    assert done.exit_code == 1
    assert f"error: {MESSAGE}" in done.stderr
    assert f"Measure the rest with: prune2deploy profile {out}/original.onnx" in done.stderr
    assert "latency on local" in done.stdout
