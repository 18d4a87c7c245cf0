"""Every channel method prunes a trained network on the digits, and its own work shows in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune2deploy.export import check_parity, export_onnx, fold_batchnorm
from prune2deploy.methods import METHODS, Method
from prune2deploy.pipeline.inputs import EVALUATION_BATCH, Inputs, open_inputs, train_settings
from prune2deploy.pipeline.pruning import Pruned, prune
from prune2deploy.recipe import Recipe, load_recipe
from prune2deploy.train import evaluate, fit

NAMES = sorted(name for name, kind in METHODS.items() if kind.granularity == "channel")
HOOKS = (
    "attach",
    "own_parameters",
    "whole_loss",
    "extra_loss",
    "after_backward",
    "after_step",
    "allocate",
    "before_cut",
)
TEXT = """
threads: 1
seed: 1
model:
  source: digits:convnet
  args: {{widths: [12, 12, 16, 16]}}
  input: [1, 8, 8]
data: {{source: digits, normalize: none, batch_size: 64}}
pretrain: {{epochs: 6, lr: 0.1, precision: fp32}}
prune:
  method: {method}
  budget: {{macs: 0.45}}
  {channels}
  {train}
finetune: {{epochs: 3, lr: 0.05, precision: fp32}}
"""
# Two channels of the last layer, as global scores may leave, do not tell ten digits apart.
CHANNELS = "round_to: 1\n  min_channels: 4"
TRAIN = "train: {epochs: 2, lr: 0.02, precision: fp32}"


def recipe_of(method: str, folder: Path) -> Recipe:
    path = folder / "digits.yaml"
    kind = METHODS[method]
    train = TRAIN if kind.needs_training or kind.may_train else ""
    path.write_text(TEXT.format(method=method, channels=CHANNELS, train=train))
    return load_recipe(path, [])


def top1(inputs: Inputs, model: nn.Module) -> float:
    loader = inputs.data.loader("test", batch_size=EVALUATION_BATCH)
    return evaluate(model, inputs.task, loader)["top1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    recipe = recipe_of("l1", tmp_path_factory.mktemp("trained"))
    inputs = open_inputs(recipe)
    assert recipe.pretrain is not None
    settings = train_settings(recipe.pretrain, recipe)
    fit(inputs.model, inputs.task, inputs.data, settings, seed=0)
    assert top1(inputs, inputs.model) > 93
    return inputs.model


def pruned(method: str, folder: Path, model: nn.Module) -> tuple[Recipe, Inputs, Pruned]:
    recipe = recipe_of(method, folder)
    inputs = open_inputs(recipe)
    before = copy.deepcopy(model.state_dict())
    result = prune(recipe, inputs, copy.deepcopy(model))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return recipe, inputs, result


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_cuts_fine_tunes_and_exports(
    name: str, tmp_path: Path, trained: nn.Module
) -> None:
    recipe, inputs, result = pruned(name, tmp_path, trained)
    share = result.graph.cost.macs(result.graph.counts(result.plan)) / result.graph.cost.macs(
        result.graph.full
    )
    assert share == pytest.approx(0.45, rel=0.1)
    assert recipe.finetune is not None
    fit(
        result.model,
        inputs.task,
        inputs.data,
        train_settings(recipe.finetune, recipe),
        seed=0,
    )
    found = top1(inputs, result.model)
    assert found > 60, "ten classes: chance is 10"
    path = tmp_path / "pruned.onnx"
    folded = fold_batchnorm(result.model, inputs.example)
    export_onnx(folded, path, input_shape=(1, 8, 8))
    loader = inputs.data.loader("test", batch_size=1, limit=64)
    parity = check_parity(path, result.model, loader)
    assert parity.max_rel_diff < 1e-4


def without(kind: type[Method[Any]]) -> type[Method[Any]]:
    """The same method with hooks that do nothing."""
    return type("Idle", (kind,), {hook: getattr(Method, hook) for hook in HOOKS})


LEARN = [n for n in NAMES if any(getattr(METHODS[n], h) is not getattr(Method, h) for h in HOOKS)]


@pytest.mark.parametrize("name", LEARN)
def test_what_its_hooks_do_shows(
    name: str, tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, usual = pruned(name, tmp_path, trained)
    monkeypatch.setitem(METHODS, name, without(METHODS[name]))
    *_, idle = pruned(name, tmp_path, trained)
    same = usual.plan.keep.keys() == idle.plan.keep.keys() and all(
        len(ids) == len(idle.plan.keep[tensor][dim]) and (ids == idle.plan.keep[tensor][dim]).all()
        for tensor, dims in usual.plan.keep.items()
        for dim, ids in dims.items()
    )
    weights = zip(usual.model.parameters(), idle.model.parameters(), strict=True)
    assert not same or not all(torch.equal(a, b) for a, b in weights)


def test_random_choice_keeps_others(
    tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(self: Method[Any], context: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(g.size, generator=generator) for g in context.graph.groups]

    kept = {name: _kept(name, tmp_path, trained, pruned) for name in ("l1", "taylor", "chip")}
    monkeypatch.setattr(METHODS["l1"], "score", drawn)
    lot = _kept("l1", tmp_path, trained, pruned)
    assert all(lot != found for found in kept.values())
    assert len({str(found) for found in kept.values()}) == len(kept)


def test_compensation_loses_less_until_statistics_are_renewed(
    tmp_path: Path, trained: nn.Module
) -> None:
    found = {}
    for text in ("true", "false"):
        recipe = recipe_of("l1", tmp_path)
        changed = [f"prune.compensate={text}", "prune.recalibrate=0", "prune.budget.macs=0.75"]
        recipe = load_recipe(tmp_path / "digits.yaml", changed)
        inputs = open_inputs(recipe)
        found[text] = top1(inputs, prune(recipe, inputs, trained).model)
    assert found["true"] > found["false"] + 10


def _kept(
    name: str, folder: Path, model: nn.Module, run: Callable[..., tuple[Recipe, Inputs, Pruned]]
) -> list[list[int]]:
    *_, result = run(name, folder, model)
    return [ids.tolist() for ids in result.graph.kept(result.plan)]
