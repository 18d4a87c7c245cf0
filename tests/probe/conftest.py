"""Stand-ins for TensorRT and a GPU."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from building import Install
from fake_cuda import FakeCuda
from fake_tensorrt import fake_tensorrt

from prune2deploy.probe import tensorrt_build, tensorrt_runtime


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that makes a version of TensorRT and a GPU appear, and returns both."""

    def put(version: str, **gpu: Any) -> tuple[Any, FakeCuda]:
        trt, cuda = fake_tensorrt(version), FakeCuda(**gpu)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        for module in (tensorrt_build, tensorrt_runtime):
            monkeypatch.setattr(module, "load_cuda", lambda: cuda)
        return trt, cuda

    return put
