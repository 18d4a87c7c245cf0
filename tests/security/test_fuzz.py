"""Hostile input ends in one clear error of ours, or in nothing worse than a result."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from fake_profile import fake_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed_bytes, changed_text, changed_value
from tiny_onnx import ConvModel

from prune2deploy.artifact.manifest import read_manifest
from prune2deploy.channels import Plan
from prune2deploy.devices import file as devices_file
from prune2deploy.devices.following import Follower, read_answer
from prune2deploy.errors import Prune2DeployError
from prune2deploy.export.precision import precision_of
from prune2deploy.export.precision.graphs import load_graph
from prune2deploy.latency import ProfileOptions
from prune2deploy.latency.results import result_of_device
from prune2deploy.latency.staircase.table import load_table
from prune2deploy.models.checkpoint import load_state_dict_file
from prune2deploy.pipeline.stages import usable
from prune2deploy.recipe import parse_recipe
from prune2deploy.train.state_file import DamagedError, read_state, write_state

ROOT = Path(__file__).parents[2]
RECIPES = tuple(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("recipes/**/*.yaml")))
FEW = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(FEW, max_examples=10_000, derandomize=False)


def survives(work: Callable[[], Any], *others: type[Exception]) -> None:
    """It ends, with a result or one message; anything else is our bug."""
    message = "a result"
    try:
        work()
    except (Prune2DeployError, *others) as err:
        message = str(err)
    assert message.strip()
    assert len(message) < 20_000


@FEW
@given(changed_text(RECIPES))
def test_recipes(text: str) -> None:
    survives(lambda: parse_recipe(text, "r.yaml"))


@pytest.mark.slow
@MANY
@given(changed_text(RECIPES) | st.text(max_size=200))
def test_ten_thousand_recipes(text: str) -> None:
    survives(lambda: parse_recipe(text, "r.yaml"))


def _kept(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


STATE = {"model": {"weight": torch.arange(6.0)}, "step": 3, "history": [1, 2.5, None, (1, "x")]}


@FEW
@given(st.data())
def test_training_states(tmp_path: Path, data: st.DataObject) -> None:
    write_state(tmp_path / "sound", STATE)
    raw = (tmp_path / "sound").read_bytes()
    path = _kept(tmp_path, "state", data.draw(changed_bytes(raw)))
    if path.read_bytes() != raw:
        with pytest.raises(DamagedError):
            read_state(path)


@FEW
@given(st.data())
def test_stage_records(tmp_path: Path, data: st.DataObject) -> None:
    record = {
        "format": 1, "stage": "prune", "depends": {"a": "1"}, "files": {"x": "0" * 64},
        "result": {"metrics": {"top1": 1.0}}, "seconds": 1.0, "finished": "2026",
        "taken_from": None,
    }  # fmt: skip
    (tmp_path / "stages").mkdir(exist_ok=True)
    text = json.dumps(data.draw(changed_value(record)))
    _kept(tmp_path / "stages", "prune.json", text.encode())
    found, reason = usable(tmp_path, "prune", {"a": "1"})
    assert found is None or found.files == {}
    assert found is not None or reason


def _weights(suffix: str) -> bytes:
    tensors = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}
    if suffix == ".safetensors":
        return safetensors.torch.save(tensors)
    stream = io.BytesIO()
    torch.save(tensors, stream, _use_new_zipfile_serialization=suffix == ".pt")
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".th"])
@FEW
@given(data=st.data())
def test_checkpoints(suffix: str, tmp_path: Path, data: st.DataObject) -> None:
    path = _kept(tmp_path, f"w{suffix}", data.draw(changed_bytes(_weights(suffix))))
    survives(lambda: load_state_dict_file(path))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": {"weight": Attack()}}, tmp_path / "w.pt")
    with pytest.raises(Prune2DeployError):
        load_state_dict_file(tmp_path / "w.pt")
    assert not (tmp_path / "owned").exists()


@FEW
@given(st.data())
def test_answers_of_devices(tmp_path: Path, data: st.DataObject) -> None:
    files = {name: _kept(tmp_path, f"{name}.onnx", name.encode()) for name in ("a", "b")}
    answer = {"status": "ok", **fake_answer(files)}
    text = data.draw(changed_value(answer).map(json.dumps) | changed_text((json.dumps(answer),)))
    options = ProfileOptions(threads=1)

    def read() -> None:
        found = read_answer("pi5", text, 0, Follower("pi5", lambda line: None))
        result_of_device("pi5", files, options, found)

    survives(read)


@pytest.mark.parametrize("depth", [0, 1, 100_000])
@FEW
@given(data=st.data())
def test_answers_that_are_none(depth: int, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(("[", '{"status":', "1e999", "\x1b"))) * depth
    text += data.draw(st.text(max_size=50))
    survives(lambda: read_answer("pi5", text, 0, Follower("pi5", lambda line: None)))


CONDITIONS = {"device": "pi5", "runtime": "onnxruntime"}
TABLE = {
    "format": 1, "conditions": CONDITIONS, "step": 8,
    "layers": {"conv 3x3": {"points": [[8, 8, 1.5], [16, 8, 2.5]]}},
}  # fmt: skip


@FEW
@given(changed_value(TABLE).map(json.dumps) | changed_text((json.dumps(TABLE),)))
def test_tables_of_times(tmp_path: Path, text: str) -> None:
    path = _kept(tmp_path, "table.json", text.encode("utf-8", "surrogatepass"))
    survives(lambda: load_table(path, CONDITIONS))


PLAN = json.loads(Plan({"w": {0: np.array([0, 2])}}, {"w": (4, 3)}, notes=("note",)).to_json())


@FEW
@given(changed_value(PLAN).map(json.dumps) | changed_text((json.dumps(PLAN),)))
def test_plans(text: str) -> None:
    survives(lambda: Plan.from_json(text))


@FEW
@given(st.data())
def test_manifests(tmp_path: Path, data: st.DataObject) -> None:
    manifest = {"format": 1, "name": "x", "files": {"model.onnx": {"sha256": "0" * 64, "bytes": 1}}}
    text = json.dumps(data.draw(changed_value(manifest)))
    _kept(tmp_path, "manifest.json", text.encode())
    survives(lambda: read_manifest(tmp_path))


DEVICES = "devices:\n  pi5:\n    kind: ssh\n    host: pi.local\n    threads: 2\n    cores: [1, 2]\n"


@FEW
@given(changed_text((DEVICES,)))
def test_devices_files(tmp_path: Path, text: str) -> None:
    path = _kept(tmp_path, "devices.yaml", text.encode("utf-8", "surrogatepass"))
    survives(lambda: devices_file.read_devices(path))


@FEW
@given(data=st.data())
def test_onnx_files(conv_model: ConvModel, tmp_path: Path, data: st.DataObject) -> None:
    raw = conv_model(4).read_bytes()
    path = _kept(tmp_path, "m.onnx", data.draw(changed_bytes(raw)))
    survives(lambda: load_graph(path))
    survives(lambda: precision_of(path))


def test_an_onnx_file_cannot_name_weights_elsewhere(conv_model: ConvModel, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    proto = onnx.load(conv_model(4))
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    path = _kept(tmp_path / "inner", "m.onnx", proto.SerializeToString())
    for work in (load_graph, precision_of):
        with pytest.raises(Prune2DeployError):
            work(path)
