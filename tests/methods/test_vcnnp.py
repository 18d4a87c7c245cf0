"""VCNNP."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import run
from scoring import batches, make, scores_of, step, train
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.vcnnp import Vcnnp, distance_from_zero, divergence, published_rule


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    nn.init.uniform_(layers[1].weight, 0.5, 1.5)
    nn.init.uniform_(layers[1].bias, -0.5, 0.5)
    return nn.Sequential(*layers)


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def log_variance(method: Vcnnp) -> nn.Parameter:
    return method.own_parameters()[0]


def method_of(**options: float) -> Vcnnp:
    method = make("vcnnp", **options)
    assert isinstance(method, Vcnnp)
    return method


def test_the_example_of_the_specification() -> None:
    # methods.md 3.5
    mu = torch.tensor([0.01, 0.5], requires_grad=True)
    sigma = torch.tensor([0.005, 0.1])
    found = divergence(mu, 2 * sigma.log())
    torch.testing.assert_close(found.detach(), torch.tensor([2.0, 12.5]))
    assert published_rule(mu.detach(), sigma).tolist() == [True, False]
    found.sum().backward()
    assert mu.grad is not None
    assert (mu.grad > 0).all(), "descending draws mu towards zero"
    distances = distance_from_zero(mu.detach(), sigma)
    torch.testing.assert_close(distances, torch.tensor([1.0, 5.0]))


def test_what_the_published_rule_removes_scores_below_two() -> None:
    random = torch.Generator().manual_seed(0)
    mu = (torch.rand(5000, generator=random) - 0.5) * 0.08
    sigma = torch.rand(5000, generator=random) * 0.02
    scores, removed = distance_from_zero(mu, sigma), published_rule(mu, sigma)
    by_hand = [
        abs(m) / (s if s > 0.01 else 0.01) for m, s in zip(mu.tolist(), sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(by_hand))
    assert removed.any()
    assert (scores[removed] < 2).all()
    assert (scores[(sigma < 0.01) & ~removed] >= 2).all()
    assert (mu.abs()[(scores < 2) & ~removed] < 2 * sigma[(scores < 2) & ~removed]).all()


def test_attaching_changes_no_output_of_eval_mode(mixed: Graph) -> None:
    before = run(mixed.model, batches(4, 4)[0])
    make("vcnnp").attach(mixed)
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), before, rtol=0, atol=1e-6)


def test_in_training_one_gate_per_channel_multiplies_scale_and_shift() -> None:
    model = chain().double()
    gamma, beta = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    method = method_of(sigma=0.3)
    images = batches(8, 8)[0].double()
    method.attach(trace(model, images))
    maps: list[Tensor] = []
    model[1].register_forward_hook(lambda _, inputs, out: maps.extend((inputs[0], out)))
    torch.manual_seed(7)
    model.train()(images)
    torch.manual_seed(7)
    gates = gamma + 0.3 * torch.randn(8, dtype=torch.float64)
    read, made = maps
    centred = read - read.mean((0, 2, 3), keepdim=True)
    normal = centred / (read.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = gates[:, None, None] * (normal + (beta / gamma)[:, None, None])
    torch.testing.assert_close(made, expected)
    first = maps[1]
    model(images)
    assert not torch.allclose(maps[3], first), "another pass draws other gates"
    torch.testing.assert_close(model[1].weight.detach(), gamma)


def test_a_norm_that_is_held_in_eval_mode_draws_nothing() -> None:
    model = chain()
    make("vcnnp").attach(traced(model))
    model.train()
    model[1].eval()
    images = batches(4, 4)[0]
    assert torch.equal(model(images), model(images))


def test_the_penalty_is_the_divergence_of_channels_that_can_go(mixed: Graph) -> None:
    gammas = [mixed.model.get_parameter(f"norm{n}.weight").detach() for n in range(1, 6)]
    expected = sum(g**2 / (2 * 0.2**2) for gamma in gammas for g in gamma.tolist())
    method = make("vcnnp", penalty=0.01, sigma=0.2)
    assert method.extra_loss() is None
    method.attach(mixed)
    found = method.extra_loss()
    assert found is not None
    assert found.item() == pytest.approx(0.01 * expected, rel=1e-5)


def test_sigma_moves_by_its_gradient_but_never_above_its_first_value() -> None:
    model = chain()
    method = method_of(sigma=0.1)
    method.attach(traced(model))
    start = 2 * math.log(0.1)
    parameter = log_variance(method)
    parameter.grad = torch.tensor([1.0, -1.0] * 4)
    method.after_step(step(0.2))
    torch.testing.assert_close(parameter.detach(), torch.tensor([start - 0.2, start] * 4))
    assert parameter.grad is None
    parameter.grad = torch.zeros(8)
    method.after_step(step(0.1))
    assert parameter[0].item() == pytest.approx(start - 0.2 - 0.09), "momentum, and the new rate"


def test_detaching_leaves_plain_norms_and_keeps_the_output(mixed: Graph) -> None:
    names = [name for name, _ in mixed.model.named_parameters()]
    before = scores_of("vcnnp", mixed)
    method = make("vcnnp", penalty=1e-3)
    method.attach(mixed)
    train(method, mixed, 10)
    want = run(mixed.model, batches(4, 4)[0])
    method.detach()
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), want, rtol=1e-5, atol=1e-6)
    assert sorted(name for name, _ in mixed.model.named_parameters()) == sorted(names)
    assert type(mixed.model.get_submodule("norm1")) is nn.BatchNorm2d
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mixed.model.modules())
    for a, b in zip(before, method.score(Context(mixed)), strict=True):
        assert a is not None
        assert b is not None
        assert not torch.allclose(a, b)


def test_the_divergence_shrinks_means_in_training() -> None:
    sizes = []
    for penalty in (0.0, 0.01):
        model = chain()
        method = make("vcnnp", penalty=penalty)
        graph = traced(model)
        method.attach(graph)
        train(method, graph, 20)
        method.detach()
        sizes.append(float(model[1].weight.detach().abs().mean()))
    assert sizes[1] < sizes[0] - 0.2


def test_scores_take_the_sigmas_of_the_training_and_average_norms(mixed: Graph) -> None:
    method = method_of(sigma=0.1)
    method.attach(mixed)
    with torch.no_grad():
        for number, parameter in enumerate(method.own_parameters(), 1):
            parameter.fill_(2 * math.log(0.1 / number))
    method.detach()
    parts = [
        mixed.model.get_parameter(f"norm{n}.weight").detach().abs() * n / 0.1 for n in (1, 2, 3)
    ]
    first = method.score(Context(mixed))[0]
    assert first is not None
    torch.testing.assert_close(first, torch.stack(parts).mean(0))
    untrained = scores_of("vcnnp", mixed, sigma=0.5)[1]
    assert untrained is not None
    expected = mixed.model.get_parameter("norm4.weight").detach().abs() / 0.5
    torch.testing.assert_close(untrained, expected)


def test_the_sigmas_of_channels_that_are_cut_are_forgotten(mixed: Graph) -> None:
    method = method_of()
    method.attach(mixed)
    with torch.no_grad():
        for parameter in method.own_parameters():
            parameter.copy_(2 * torch.linspace(0.02, 0.09, len(parameter)).log())
    method.detach()
    before = method.score(Context(mixed))
    kept = [np.arange(3, 10), np.array([0, 1, 5]), np.array([1, 2, 6])]
    plan = mixed.plan(kept)
    method.before_cut(Context(mixed), kept)
    small = trace(cut(mixed.model, plan), torch.randn(2, 3, 8, 8))
    for a, b, some in zip(before, method.score(Context(small)), kept, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(b, a[torch.from_numpy(some)])


def test_sigmas_of_another_network_are_refused(mixed: Graph) -> None:
    method = method_of()
    method.attach(mixed)
    method.detach()
    small = cut(mixed.model, mixed.plan([range(3, 10), range(6), range(8)]))
    with pytest.raises(MethodError, match=r"'norm1.weight' had 10 channels, and now it has 7"):
        method.score(Context(trace(small, torch.randn(2, 3, 8, 8))))
