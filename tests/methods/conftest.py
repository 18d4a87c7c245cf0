"""The network that all methods are tried on."""

from __future__ import annotations

import pytest
import torch
from scoring import build_mixed

from prune2deploy.channels import Graph, trace


@pytest.fixture
def mixed() -> Graph:
    graph = trace(build_mixed(), torch.randn(2, 3, 8, 8))
    assert [(g.name, g.size) for g in graph.groups] == [("stem", 10), ("side", 6), ("hidden", 8)]
    return graph
