"""What every test runs under."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import ConvModel, save


@pytest.fixture(scope="session", autouse=True)
def _own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Measurements of a test do not wait for those of other workers, or of whoever measures here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNE2DEPLOY_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # What somebody measured on this machine before decides nothing here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # xdist runs one worker per core; more threads than cores are slower, and here much slower.
    torch.set_num_threads(1)


@pytest.fixture
def conv_model(tmp_path: Path) -> ConvModel:
    """Return a function that writes two 3x3 convolutions of this width."""

    def write(channels: int, shape: list[Any] | None = None, name: str | None = None) -> Path:
        rng = np.random.default_rng(0)
        weights = [
            numpy_helper.from_array(rng.standard_normal((channels, width, 3, 3), np.float32), key)
            for key, width in (("w0", 3), ("w1", channels))
        ]
        nodes = [
            helper.make_node("Conv", ["x", "w0"], ["h"], pads=[1] * 4),
            helper.make_node("Conv", ["h", "w1"], ["y"], pads=[1] * 4),
        ]
        path = tmp_path / (name or f"conv{channels}.onnx")
        return save(path, nodes, shape or [1, 3, 16, 16], weights, TensorProto.FLOAT)

    return write


@pytest.fixture
def unknown_operator_model(tmp_path: Path) -> Path:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"])]
    return save(tmp_path / "frob.onnx", nodes, [1, 3], [], TensorProto.FLOAT)
