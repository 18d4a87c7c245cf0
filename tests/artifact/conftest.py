from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prune2deploy.pipeline import RunResult, run_recipe
from prune2deploy.recipe import parse_recipe

RECIPE = """
name: parts
threads: 1
model: {source: "digits:convnet", input: [1, 8, 8]}
data: {source: digits, normalize: {mean: [0.3], std: [0.4]}}
pretrain: {epochs: 2, lr: 0.1, precision: fp32}
prune: {method: l1, budget: {macs: 0.5}}
export: {precision: [fp32, int8]}
profile: {min_time_s: 0.05, retries: 0}
gates: {max_accuracy_drop: 90, max_size_mb: 0.5}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunResult]:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("artifact")
    yield run_recipe(parse_recipe(RECIPE, folder / "parts.yaml"), folder / "run")
    torch.set_num_threads(before)


@pytest.fixture
def dist(finished: RunResult, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished.folder / "dist" / "parts", tmp_path / "parts"))
