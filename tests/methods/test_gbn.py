"""GBN."""

from __future__ import annotations

import pytest
import torch
from networks import Net, run
from scoring import batches, losses, make, scores_of, train
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.gbn import with_costs
from prune2deploy.methods.rsnli import relative_costs


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def original(model: nn.Module, name: str) -> Tensor:
    """What is trained in place of a norm's shift."""
    found = model.get_submodule(f"{name}.parametrizations.bias").original
    assert isinstance(found, Tensor)
    return found


def test_the_gate_of_the_specification() -> None:
    # methods.md 3.15: scale 2 and shift 4 are a gate of 2 before (normalised + 2).
    model = chain()
    nn.init.constant_(model[1].weight, 2.0)
    nn.init.constant_(model[1].bias, 4.0)
    before = run(model, batches(4, 4)[0])
    make("gbn").attach(traced(model))
    assert original(model, "1").tolist() == [2.0] * 8
    torch.testing.assert_close(run(model, batches(4, 4)[0]), before, rtol=0, atol=1e-6)


def test_the_score_of_the_specification() -> None:
    # methods.md 3.15: 1 * 0.3 + 0.5 * -0.6 is 0, although the scale's part alone is 0.3.
    model = chain()
    nn.init.constant_(model[1].bias, 0.5)

    def slopes(model: nn.Module, count: int, size: int) -> list[Tensor]:
        gamma, beta = model.get_parameter("1.weight"), model.get_parameter("1.bias")
        return [0.3 * gamma[0] - 0.6 * beta[0] + 0.3 * gamma[1], -0.2 * gamma[1]]

    (found,) = make("gbn").score(Context(traced(model), losses=slopes))
    assert found is not None
    expected = torch.tensor([0.0, 0.5, *[0.0] * 6], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_score_is_the_gradient_of_gates_added_over_batches_and_norms(mixed: Graph) -> None:
    # An independent way: multiply each norm's output with gates of 1, and differentiate.
    model = mixed.model.double()
    gates = [torch.ones(10, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    handles = [
        model.get_submodule(f"norm{number}").register_forward_hook(
            lambda _, __, out, gate=gate: out * gate[:, None, None]
        )
        for number, gate in enumerate(gates, 1)
    ]
    expected = torch.zeros(10, dtype=torch.float64)
    for loss in losses(model.eval(), 6, 4):
        expected += sum(g.abs() for g in torch.autograd.grad(loss, gates))
    for handle in handles:
        handle.remove()
    found = scores_of("gbn", mixed)[0]
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_a_huge_shift_is_clamped_and_a_constant_channel_is_silenced() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight[:4] = torch.tensor([0.01, 0.0, 0.0, -0.01])
        model[1].bias[:4] = torch.tensor([0.3, 0.7, 0.0, 0.3])
    method = make("gbn")
    method.attach(traced(model))
    assert original(model, "1")[:4].tolist() == [10.0, 10.0, 0.0, -10.0]
    method.detach()
    torch.testing.assert_close(model[1].bias[:4].detach(), torch.tensor([0.1, 0.0, 0.0, 0.1]))


def test_the_scale_has_the_gradient_of_the_gate() -> None:
    images = batches(8, 8)[0]
    plain, gated = chain().double().train(), chain().double().train()
    for model in (plain, gated):
        nn.init.uniform_(model[1].weight, 0.5, 1.0, torch.Generator().manual_seed(1))
        nn.init.uniform_(model[1].bias, 0.5, 1.0, torch.Generator().manual_seed(2))
    make("gbn").attach(trace(gated, images.double()))
    plain(images.double()).square().sum().backward()
    gated(images.double()).square().sum().backward()
    ratio = plain[1].bias.detach() / plain[1].weight.detach()
    expected = plain[1].weight.grad + ratio * plain[1].bias.grad
    found = gated.get_submodule("1.parametrizations.bias").get_parameter("original")
    torch.testing.assert_close(gated[1].weight.grad, expected)
    torch.testing.assert_close(found.grad, plain[1].weight.detach() * plain[1].bias.grad)


def test_the_penalty_is_on_gates_of_channels_that_can_go(mixed: Graph) -> None:
    method = make("gbn", penalty=0.25)
    assert method.extra_loss() is None
    with torch.no_grad():
        mixed.model.get_parameter("norm4.weight").neg_()
    method.attach(mixed)
    sizes = [mixed.model.get_parameter(f"norm{n}.weight").detach().abs() for n in range(1, 6)]
    found = method.extra_loss()
    assert found is not None
    torch.testing.assert_close(found.detach(), 0.25 * torch.cat(sizes).sum())
    model = chain()
    method.attach(traced(model))
    found = method.extra_loss()
    assert found is not None
    assert found.item() == pytest.approx(0.25 * 8), "the channels of the last layer cannot go"
    assert type(model[4]) is nn.BatchNorm2d


def test_channels_of_a_norm_that_must_stay_keep_their_shift() -> None:
    model = Net(
        lambda net, x: net.head(net.norm(torch.cat([net.a(x), x], 1))),
        a=nn.Conv2d(3, 4, 1),
        norm=nn.BatchNorm2d(7),
        head=nn.Conv2d(7, 2, 1),
    )
    nn.init.constant_(model.norm.bias, 6.0)
    nn.init.constant_(model.norm.weight, 3.0)
    method = make("gbn", penalty=1.0)
    method.attach(traced(model))
    assert original(model, "norm").tolist() == [2.0] * 4 + [6.0] * 3
    found = method.extra_loss()
    assert found is not None
    assert found.item() == 12


def test_training_shrinks_gates_and_detaching_keeps_the_output(mixed: Graph) -> None:
    names = [name for name, _ in mixed.model.named_parameters()]
    before = scores_of("gbn", mixed)
    first = mixed.model.get_parameter("norm4.weight").detach().abs().mean()
    method = make("gbn", penalty=0.5)
    method.attach(mixed)
    train(method, mixed, 10)
    want = run(mixed.model, batches(4, 4)[0])
    method.detach()
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), want, rtol=1e-5, atol=1e-6)
    assert sorted(name for name, _ in mixed.model.named_parameters()) == sorted(names)
    assert type(mixed.model.get_submodule("norm1")) is nn.BatchNorm2d
    assert mixed.model.get_parameter("norm4.weight").detach().abs().mean() < first - 0.1
    for a, b in zip(before, scores_of("gbn", mixed), strict=True):
        assert a is not None
        assert b is not None
        assert not torch.allclose(a, b)


def test_costs_lower_scores_in_means() -> None:
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([6.0])]
    first, second = with_costs(scores, [0.5, 2.0], 0.1)  # the mean is 3
    torch.testing.assert_close(first, torch.tensor([0.85, 1.85]))
    torch.testing.assert_close(second, torch.tensor([5.4]))
    assert with_costs([], [], 0.1) == []


def test_the_option_weighs_the_costs_of_the_network(mixed: Graph) -> None:
    plain = [s for s in scores_of("gbn", mixed) if s is not None]
    lower = [s for s in scores_of("gbn", mixed, cost_weight=0.3) if s is not None]
    mean = torch.cat(plain).mean()
    for a, b, cost in zip(plain, lower, relative_costs(mixed), strict=True):
        torch.testing.assert_close(b, a - 0.3 * mean * cost)


def test_a_group_without_a_norm_is_not_judged() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
    )
    graph = traced(nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    first, second = scores_of("gbn", graph, cost_weight=0.1)
    assert first is not None
    assert second is None


def test_without_losses_or_norms_it_says_so(mixed: Graph) -> None:
    with pytest.raises(MethodError, match=r"gbn looks at the gradient.*given no losses"):
        make("gbn").score(Context(mixed, batches))
    with pytest.raises(MethodError, match="gbn was given no losses: the training set is empty"):
        make("gbn").score(Context(mixed, batches, lambda model, count, size: []))
    graph = traced(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    with pytest.raises(MethodError, match="No channel that can go has a batch norm"):
        make("gbn").attach(graph)
