"""A pruned model on disk: weights and plan, no pickle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import random_kept, randomize_norms, run
from torch import nn

from prune2deploy.channels import Plan, cut, load_pruned, save_pruned, trace
from prune2deploy.errors import ModelError
from prune2deploy.models.cifar_resnet import resnet20, resnet32


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path, Path]:
    torch.manual_seed(0)
    model = randomize_norms(resnet20())
    graph = trace(model, torch.randn(1, 3, 32, 32))
    plan = graph.plan(random_kept(graph.groups))
    small = cut(model, plan)
    save_pruned(small, plan, tmp_path / "m.safetensors", tmp_path / "plan.json")
    return small, tmp_path / "m.safetensors", tmp_path / "plan.json"


def test_a_pruned_model_comes_back(saved: tuple[nn.Module, Path, Path]) -> None:
    small, weights, plan = saved
    original = resnet20()
    before = {k: v.clone() for k, v in original.state_dict().items()}
    again = load_pruned(original, weights, plan)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(run(again, image), run(small, image))
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
    assert sorted(p.name for p in weights.parent.iterdir()) == ["m.safetensors", "plan.json"]
    assert weights.stat().st_mode == plan.stat().st_mode  # readable by the same people


def test_layers_that_share_a_weight_come_back_sharing_it(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        )
        model[2].weight = model[1].weight
        return model

    model = build()
    image = torch.randn(2, 3, 4, 4)
    plan = trace(model, image).plan([[0, 4, 7]])
    small = cut(model, plan)
    save_pruned(small, plan, tmp_path / "w", tmp_path / "p")
    again = load_pruned(build(), tmp_path / "w", tmp_path / "p")
    assert again[2].weight is again[1].weight
    assert torch.equal(run(again, image), run(small, image))


def test_another_source_model_is_refused(saved: tuple[nn.Module, Path, Path]) -> None:
    _, weights, plan = saved
    with pytest.raises(ModelError):
        load_pruned(resnet32(), weights, plan)
    with pytest.raises(ModelError, match="made for another model"):
        load_pruned(nn.Sequential(nn.Conv2d(3, 4, 1)), weights, plan)


@pytest.mark.parametrize("damage", ["no plan", "no weights", "cut short", "not text"])
def test_damaged_files_are_refused(saved: tuple[nn.Module, Path, Path], damage: str) -> None:
    _, weights, plan = saved
    if damage == "no plan":
        plan.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        plan.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"m\.safetensors and plan\.json"):
        load_pruned(resnet20(), weights, plan)


def test_weights_of_another_cut_are_refused(
    saved: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    _, weights, plan = saved
    other = Plan.from_json(plan.read_text())
    other = Plan({}, {}, other.choices)
    plan.write_text(other.to_json())
    with pytest.raises(ModelError, match="from one run"):
        load_pruned(resnet20(), weights, plan)
