"""What holds for every method that learns a gate per channel."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hooked import train_with_hooks
from networks import run
from scoring import batches, make
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, mask, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import METHODS, Context, Method
from prune2deploy.methods.common.gated import Gated

NAMES = sorted(name for name, kind in METHODS.items() if issubclass(kind, Gated))
# So that masks move and gates differ within a few steps; what leaves the network as it is.
QUICK: dict[str, dict[str, Any]] = {
    "bar": {"start": 3.0, "gate_lr": 0.3},
    "dmc": {"gate_lr": 0.2},
    "gal": {"every": 1, "penalty": 0.3},
    "gdp": {"gate_rate": 2.0, "penalty": 2.0},
}


def quick(name: str) -> Method[Any]:
    return make(name, **QUICK[name])


def scores(method: Method[Any], graph: Graph) -> list[Tensor]:
    found = [s for s in method.score(Context(graph, batches)) if s is not None]
    assert len(found) == len(graph.groups)
    return found


def test_the_table_has_them_all() -> None:
    assert sorted(QUICK) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_attaching_leaves_the_function_and_owns_the_numbers(name: str, mixed: Graph) -> None:
    images = batches(4, 4)[0]
    before = run(mixed.model, images)
    method = quick(name)
    method.attach(mixed)
    torch.testing.assert_close(run(mixed.model, images), before, rtol=1e-5, atol=1e-6)
    (own,) = method.own_parameters()
    assert own.shape == (24,)
    assert any(own is p for p in mixed.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_detaching_leaves_a_plain_model_with_the_same_function(name: str, mixed: Graph) -> None:
    images = batches(4, 4)[0]
    plain = {key: tuple(v.shape) for key, v in mixed.model.state_dict().items()}
    start = run(mixed.model, images)
    method = quick(name)
    train_with_hooks(method, mixed)
    want = run(mixed.model, images)
    assert not torch.allclose(want, start, atol=1e-3), "training changed it"
    method.detach()
    torch.testing.assert_close(run(mixed.model, images), want, rtol=1e-5, atol=1e-5)
    assert {key: tuple(v.shape) for key, v in mixed.model.state_dict().items()} == plain
    assert all(p.requires_grad for p in mixed.model.parameters())
    for module in mixed.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not hasattr(mixed.model, "prune2deploy_gates")
    method.detach()  # a second time does nothing


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_what_was_learned(name: str, mixed: Graph) -> None:
    untrained = scores(quick(name), mixed)
    method = quick(name)
    train_with_hooks(method, mixed)
    (own,) = method.own_parameters()
    own = own.detach().clone()
    method.detach()
    learned = scores(method, mixed)
    for a, b in zip(untrained, learned, strict=True):
        assert not torch.allclose(a, b)
    assert len(torch.cat(learned).unique()) > 1
    # Each falls or rises with the number: they are in the same order.
    joined = torch.cat(learned)
    order = own.abs().argsort() if name == "gdp" else own.argsort()
    assert (joined[order].diff() >= -1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_untrained_scores_are_norms_of_filters(name: str, mixed: Graph) -> None:
    _, side, _ = scores(quick(name), mixed)
    norms = mixed.model.get_parameter("side.weight").detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(side, norms / norms.mean())


@pytest.mark.parametrize("name", NAMES)
def test_channels_without_a_gate_left_can_be_cut(name: str, mixed: Graph) -> None:
    # Where all numbers of a channel's gate are zero, the cut network is the trained one.
    method = quick(name)
    method.attach(mixed)
    (own,) = method.own_parameters()
    with torch.no_grad():
        own[:4] = -9.0 if name == "bar" else 0.0
    images = batches(4, 4)[0]
    method.detach()
    kept = [np.arange(4, 10), np.arange(6), np.arange(8)]
    want = run(mixed.model, images)
    plan = mixed.plan(kept)
    torch.testing.assert_close(run(mask(mixed.model, plan), images), want)
    torch.testing.assert_close(run(cut(mixed.model, plan), images), want)
    assert scores(method, mixed)[0].argsort(stable=True)[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_second_round_goes_on_with_what_is_left(name: str, mixed: Graph) -> None:
    method = quick(name)
    train_with_hooks(method, mixed)
    method.detach()
    before = scores(method, mixed)
    kept = [np.arange(3, 10), np.arange(6), np.arange(5)]
    small = trace(cut(mixed.model, mixed.plan(kept)), torch.randn(2, 3, 8, 8))
    with pytest.raises(MethodError, match=r"other channels than those of 'stem', which has 7"):
        method.score(Context(small))
    method.before_cut(Context(mixed), kept)
    for a, b, stays in zip(before, scores(method, small), kept, strict=True):
        assert torch.equal(a[torch.from_numpy(stays)], b)


@pytest.mark.parametrize("name", ["bar", "gal"])
def test_channels_that_stay_with_a_gate_of_zero_are_opened_before_the_cut(
    name: str, mixed: Graph
) -> None:
    # Or scale and shift would be zero, and a ReLU behind them lets no gradient pass.
    before = copy.deepcopy(mixed.model.state_dict())
    method = quick(name)
    method.attach(mixed)
    (own,) = method.own_parameters()
    with torch.no_grad():
        own[:4] = -9.0 if name == "bar" else 0.0
    method.detach()
    method.before_cut(Context(mixed), [np.arange(2, 10), np.arange(6), np.arange(8)])
    for norm in ("norm1", "norm2", "norm3"):
        for kind in ("weight", "bias"):
            now = mixed.model.get_parameter(f"{norm}.{kind}").detach()
            assert not now[:2].any()
            torch.testing.assert_close(now[2:], before[f"{norm}.{kind}"][2:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_training_gives_the_same_scores(name: str, mixed: Graph) -> None:
    found = []
    for graph in (mixed, trace(copy.deepcopy(mixed.model), torch.randn(2, 3, 8, 8))):
        method = quick(name)
        train_with_hooks(method, graph)
        method.detach()
        found.append(torch.cat(scores(method, graph)))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["bar", "gal"])
def test_answers_that_are_no_tensor_are_refused(name: str, mixed: Graph) -> None:
    method = make(name)
    method.attach(mixed)
    with pytest.raises(MethodError, match=rf"{name} compares.*as one tensor.*type dict"):
        method.whole_loss(torch.zeros(()), batches(4, 4)[0], {"out": torch.zeros(4, 4)})


@pytest.mark.parametrize("name", ["bar", "gal"])
def test_answers_may_be_maps(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    graph = trace(model, torch.randn(2, 3, 8, 8))
    method = make(name)
    method.attach(graph)
    images = batches(4, 4)[0]
    model.train()
    loss = method.whole_loss(torch.zeros(()), images, model(images))
    assert loss.dim() == 0
    loss.backward()
    assert model[2].weight.grad.isfinite().all()
