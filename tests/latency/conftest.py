from __future__ import annotations

import pytest
from tiny_onnx import QUICK

from prune2deploy.latency import ProfileOptions


@pytest.fixture
def quick_options() -> ProfileOptions:
    return ProfileOptions(**QUICK, time_limit_s=60)
