"""The probe runs a model on given inputs, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from building import Install
from engine_models import write_model
from tensorrt_names import VERSIONS

from prune2deploy.probe import outputs as probe_outputs
from prune2deploy.probe.job import ASKS, COMMON, Refusal
from prune2deploy.probe.outputs import outputs
from prune2deploy.probe.tensorrt_runtime import TensorRT


def images(count: int, kind: str = "float32", seed: int = 1) -> Any:
    return np.random.RandomState(seed).standard_normal((count, 3, 16, 16)).astype(kind)


def asked(model: Path, samples: Any, **settings: Any) -> Any:
    """What the probe writes for these samples."""
    path = model.parent / "samples.npz"
    np.savez(path, **{str(n): array for n, array in enumerate(samples)})
    job = {**COMMON, **ASKS["outputs"], "model": {"name": "m", "path": str(model)}}
    answer = outputs({**job, "inputs": str(path), **settings})
    with np.load(answer["outputs"], allow_pickle=False) as held:
        return {name: held[str(n)] for n, name in enumerate(answer["names"])}


@pytest.mark.parametrize("count", [1, 4, 7])
def test_onnx_runtime_answers_all_samples(count: int, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", "fp32", 3)
    given = images(count)
    found = asked(model, [given])
    session = onnxruntime.InferenceSession(model)
    filled = np.concatenate([given, np.repeat(given[-1:], -count % 3, axis=0)])
    wanted = [session.run(None, {"x": part})[0] for part in np.split(filled, len(filled) // 3)]
    np.testing.assert_array_equal(found["y"], np.concatenate(wanted)[:count])


@pytest.mark.parametrize("held", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_answers_as_its_file(
    version: str, held: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(version)
    # The build is a process of its own, which knows nothing of our stand-ins.
    monkeypatch.setattr(probe_outputs, "prepared", lambda job: job["models"])
    monkeypatch.setattr(probe_outputs, "runtime_of", lambda job: TensorRT)
    model = write_model(tmp_path / "m.onnx", held, 1)
    kind = "float16" if held == "fp16" else "float32"
    given = images(3, kind)
    engine = {"folder": str(tmp_path / "engines"), "precision": held}
    found = asked(model, [given], runtime="tensorrt", engine=engine)
    session = onnxruntime.InferenceSession(model)
    wanted = np.concatenate([session.run(None, {"x": one[None]})[0] for one in given])
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-3)


def test_a_torch_program_answers(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    program = torch.export.export(network, (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "m.pt2")
    given = images(4)
    found = asked(tmp_path / "m.pt2", [given], runtime="torch")
    with torch.inference_mode():
        wanted = network(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(found["0"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([images(2), images(2)], "2 inputs were given, and the model has 1"),
        ([images(2)[:, :2]], r"samples have the shape \[2, 16, 16\], input 'x' takes"),
        ([images(2), images(3)], "not equally many"),
        ([], "holds no samples"),
    ],
)
def test_what_does_not_fit_is_refused(samples: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=message):
        asked(write_model(tmp_path / "m.onnx", "fp32", 1), samples)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", "fp32", 1)
    with pytest.raises(Refusal, match="holds no samples"):
        asked(model, [np.array([object()], dtype=object)])
