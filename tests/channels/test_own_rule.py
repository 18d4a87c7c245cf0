"""A rule that a user adds for an operator of their own, as in examples/own_rule."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from networks import assert_cut_is_exact, random_kept, randomize_norms

from prune2deploy.channels import trace
from prune2deploy.channels.rules import RULES

FILE = Path(__file__).parents[2] / "examples" / "own_rule" / "network.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_rule_network", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_with_the_rule_the_channels_go_through(example: ModuleType) -> None:
    torch.manual_seed(0)
    model, images = randomize_norms(example.build()), torch.randn(2, 3, 16, 16)
    graph = trace(model, images)
    assert graph.unknown_ops == {}
    assert {g.name: g.size for g in graph.groups} == {"stem.0": 16, "body.0": 32}
    assert_cut_is_exact(model, images, graph, graph.plan(random_kept(graph.groups)))


def test_without_it_they_stay_and_that_is_said(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, "antialias.blur")
    graph = trace(example.build(), torch.randn(2, 3, 16, 16))
    assert graph.groups == ()
    assert graph.unknown_ops == {"antialias.blur": 2}
    reasons = {f.name: f.reason for f in graph.frozen}
    assert reasons["stem.0"] == "no rule for the operator antialias.blur"


def test_the_rule_is_ten_lines(example: ModuleType) -> None:
    text = FILE.read_text(encoding="utf-8")
    start = text.index('@rule("antialias.blur")')
    assert len(text[start : text.index("class Network")].strip().splitlines()) <= 10
