"""SCP."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, run
from scoring import batches, make, scores_of, train
from torch import Tensor, nn

from prune2deploy.channels import Graph, mask, trace
from prune2deploy.methods.common.gates import Gates
from prune2deploy.methods.scp import drop_logits, relaxed_masks, silence


def chain(beta: Tensor | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 4, 1))
    if beta is not None:
        with torch.no_grad():
            model[1].bias.copy_(beta)
    return model


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def masks(model: nn.Module) -> Tensor:
    gates = model.get_submodule("prune2deploy_gates")
    assert isinstance(gates, Gates)
    return gates.now().detach()


SILENT = torch.tensor([-3.0, -1.7, -1.6, -1.5, 0.0, 0.5, -2.0, 1.0])
"""Shifts behind scales of 1: dropped in eval mode are those below 0.05 - 1.645."""
ON = [3, 4, 5, 7]


def test_the_example_of_the_specification() -> None:
    # methods.md 3.18
    gamma, beta = torch.tensor([0.5, 0.6, 1.0]), torch.full((3,), -1.0)
    cdf = silence(gamma, beta, 0.05)
    torch.testing.assert_close(cdf, torch.tensor([0.98214, 0.95994, 0.85314]), atol=1e-5, rtol=0)
    p = drop_logits(cdf, 0.95, 20.0).sigmoid()
    torch.testing.assert_close(p, torch.tensor([0.6554, 0.5495, 0.1260]), atol=1e-4, rtol=0)


def test_silence_is_the_normal_distribution_below_the_threshold() -> None:
    random = torch.Generator().manual_seed(0)
    gamma, beta = torch.randn(2, 50, dtype=torch.float64, generator=random)
    expected = [
        0.5 * (1 + math.erf((0.05 - b) / (abs(g) * math.sqrt(2))))
        for g, b in zip(gamma.tolist(), beta.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        silence(gamma, beta, 0.05), torch.tensor(expected, dtype=torch.float64)
    )


def test_a_constant_is_silent_or_not_and_has_a_finite_gradient() -> None:
    gamma = torch.zeros(2, requires_grad=True)
    beta = torch.tensor([0.7, -0.7], requires_grad=True)
    cdf = silence(gamma, beta, 0.05)
    assert cdf.tolist() == [0, 1]
    for gradient in torch.autograd.grad(cdf.sum(), (gamma, beta)):
        assert gradient.isfinite().all()


def test_masks_are_the_keep_entry_of_a_relaxed_one_hot() -> None:
    random = torch.Generator().manual_seed(0)
    p, keep, drop = torch.rand(3, 200, dtype=torch.float64, generator=random).clamp(0.01, 0.99)
    keep, drop = -(-keep.log()).log(), -(-drop.log()).log()  # Gumbel numbers
    scores = torch.stack([(1 - p).log() + keep, p.log() + drop]) / 0.5
    uniform = (keep - drop).sigmoid()  # what stands for both
    found = relaxed_masks(p.logit(), uniform, 0.5)
    torch.testing.assert_close(found, scores.softmax(dim=0)[0])


def test_a_mask_is_on_as_often_as_the_channel_is_kept() -> None:
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    found = relaxed_masks(torch.tensor(0.7).logit().expand(20000), uniform, 0.5)
    assert (found > 0.5).double().mean().item() == pytest.approx(0.3, abs=0.015)


def test_in_eval_mode_silent_channels_are_off_behind_the_activation() -> None:
    model = chain(SILENT)
    graph = traced(model)
    images = batches(4, 4)[0]
    want = run(mask(model, graph.plan([ON, range(6)])), images)
    method = make("scp")
    method.attach(graph)
    model.eval()
    assert masks(model).tolist() == [float(n in ON) for n in range(8)] + [1.0] * 6
    torch.testing.assert_close(run(model, images), want)
    method.detach()
    torch.testing.assert_close(run(model, images), want, rtol=1e-5, atol=1e-6)
    off = [n for n in range(8) if n not in ON]
    assert not model[3].weight[:, off].any()
    assert model[3].weight[:, ON].all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    (first, second) = scores_of("scp", traced(model))
    assert first is not None
    assert (first > 0).nonzero().flatten().tolist() == ON
    assert second is None, "no norm"


def test_every_pass_of_a_training_draws_masks() -> None:
    model = chain(SILENT)
    make("scp").attach(traced(model))
    drawn = []
    model[1].register_forward_hook(lambda *_: drawn.append(masks(model)))
    model.train()
    for _ in range(200):
        model(batches(4, 4)[0])
    found = torch.stack(drawn)
    assert not torch.equal(found[0], found[1])
    assert (found[:, 8:] == 1).all(), "channels without a norm are never dropped"
    cdf = silence(torch.ones(8), SILENT, 0.05)
    expected = 1 - (20 * (cdf - 0.95)).sigmoid()
    torch.testing.assert_close((found[:, :8] > 0.5).float().mean(0), expected, atol=0.1, rtol=0)


def test_statistics_of_channels_that_are_off_stay() -> None:
    model = chain(SILENT)
    method = make("scp")
    method.attach(traced(model))
    norm, drawn = model[1], []
    handle = norm.register_forward_hook(lambda *_: drawn.append(masks(model)))
    model.train()
    seen = set()
    for images in batches(40, 4):
        before = norm.running_mean.clone(), norm.running_var.clone()
        model(images)
        on = drawn[-1][:8] >= 0.5
        seen |= {(n, bool(v)) for n, v in enumerate(on)}
        for now, old in zip((norm.running_mean, norm.running_var), before, strict=True):
            assert torch.equal(now != old, on)
    assert {(0, True), (0, False), (7, True)} <= seen
    handle.remove()
    method.detach()
    before = norm.running_mean.clone(), norm.running_var.clone()
    model.train()(batches(4, 4)[0])
    assert (norm.running_mean != before[0]).all(), "and run again afterwards"


def test_the_penalty_is_on_shifts_and_scales(mixed: Graph) -> None:
    method = make("scp", penalty=0.1, scale_weight=3.0)
    assert method.extra_loss() is None
    method.attach(mixed)
    found = method.extra_loss()
    assert found is not None
    by_hand = 0.0
    for number in range(1, 6):
        gamma = mixed.model.get_parameter(f"norm{number}.weight").tolist()
        beta = mixed.model.get_parameter(f"norm{number}.bias").tolist()
        by_hand += sum(b + 3 * abs(g) for g, b in zip(gamma, beta, strict=True))
    assert found.item() == pytest.approx(0.1 * by_hand, rel=1e-5)


def test_the_loss_reaches_scales_and_shifts_through_the_masks() -> None:
    # At positions where the ReLU is shut for all images there is no other way.
    model = chain(torch.full((8,), -1.6))
    make("scp").attach(traced(model))
    model.train()
    model[1].register_forward_hook(lambda _, __, out: out.detach())
    model(batches(8, 8)[0]).square().sum().backward()
    for parameter in (model[1].weight, model[1].bias):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_norms_that_share_channels_are_averaged(mixed: Graph) -> None:
    parts = [
        silence(
            mixed.model.get_parameter(f"norm{n}.weight").detach(),
            mixed.model.get_parameter(f"norm{n}.bias").detach(),
            0.05,
        )
        for n in (1, 2, 3)
    ]
    first = scores_of("scp", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, 0.95 - torch.stack(parts).mean(0))


def test_training_drives_shifts_down_until_channels_are_dropped(mixed: Graph) -> None:
    before = scores_of("scp", mixed)
    method: Any = make("scp", penalty=0.2)
    method.attach(mixed)
    train(method, mixed, 60)
    want = run(mixed.model, batches(4, 4)[0])
    method.detach()
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), want, rtol=1e-5, atol=1e-6)
    after = scores_of("scp", mixed)
    assert all(a is not None and (a > 0).all() for a in before)
    assert any(a is not None and (a < 0).any() for a in after)


def test_channels_read_by_shared_weights_have_no_mask() -> None:
    # Only one of the weight's names could be masked.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(F.relu(net.norm2(net.middle(F.relu(net.norm1(net.first(x)))))))

    model = Net(
        forward,
        first=nn.Conv2d(3, 4, 1),
        norm1=nn.BatchNorm2d(4),
        middle=nn.Conv2d(4, 5, 1),
        norm2=nn.BatchNorm2d(5),
        head=nn.Conv2d(5, 2, 1),
    )
    model.alias = nn.Conv2d(4, 5, 1)
    model.alias.weight = model.middle.weight
    graph = traced(model)
    assert [g.name for g in graph.groups] == ["first", "middle"]
    method = make("scp")
    method.attach(graph)
    assert masks(model).shape == (5,)
    before = model.norm1.running_mean.clone()
    model.train()(batches(4, 4)[0])
    assert (model.norm1.running_mean != before).all()
