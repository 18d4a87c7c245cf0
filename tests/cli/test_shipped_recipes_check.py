"""`check` passes for every recipe that is shipped, on images and weights made here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import Result

from prune2deploy.models import load_model

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
CLASSES = 10


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        for number in range(CLASSES):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "1.png")
    return root


def weights(source: str, path: Path) -> Path:
    """Save random weights of a model with the number of classes that the images have."""
    model = load_model(source, {}, base_dir=FOLDER, num_classes=CLASSES, checkpoint=None)
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_check_passes(
    call: Callable[..., Result], images: Path, tmp_path: Path, path: Path
) -> None:
    wanted = re.findall(r"--set ([\w.]+)=PATH", path.read_text())
    assert set(wanted) <= {"data.root", "model.checkpoint"}
    overrides = []
    if "data.root" in wanted:
        overrides += ["--set", f"data.root={images}"]
    if "model.checkpoint" in wanted:
        source = yaml.safe_load(path.read_text())["model"]["source"]
        overrides += ["--set", f"model.checkpoint={weights(source, tmp_path / 'w.pt')}"]
    result = call("check", path, *overrides)
    assert result.exit_code == 0, result.output
    assert path.stem in result.stdout
    assert "MACs" in result.stdout or "not zero" in result.stdout
