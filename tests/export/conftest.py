from pathlib import Path

import pytest
import torch
from precision_networks import Residual, save_network


@pytest.fixture(scope="session")
def residual_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_network(Residual(), tmp_path_factory.mktemp("residual") / "model.onnx")
