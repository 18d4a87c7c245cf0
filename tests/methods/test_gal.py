"""GAL."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hooked import USELESS, brightest, half_useless, train_with_hooks
from networks import run
from scoring import batches, make, step
from torch import nn

from prune2deploy.channels import Graph
from prune2deploy.methods import Context
from prune2deploy.methods.gal import Fista, Gal


def test_the_steps_of_the_specification() -> None:
    # methods.md 3.20.
    m = torch.tensor([0.5])
    fista = Fista(m, 0.6)
    coefficients = [fista.step(torch.tensor([2.0]), 0.01)]
    torch.testing.assert_close(m, torch.tensor([0.474]))
    coefficients += [fista.step(torch.tensor([0.0]), 0.01) for _ in range(2)]
    assert coefficients == pytest.approx([0, 0.28175, 0.43404], abs=1e-5)
    # The second: momentum along -0.026, then the threshold of 0.006; the third likewise.
    second = 0.474 + 0.28175 * (0.474 - 0.5) - 0.006
    third = second + 0.43404 * (second - 0.474) - 0.006
    torch.testing.assert_close(m, torch.tensor([third]), rtol=0, atol=1e-5)
    fista.restart()
    assert fista.step(torch.tensor([0.0]), 0.01) == 0


def test_masks_stop_at_zero() -> None:
    m = torch.tensor([0.1, 0.1])
    Fista(m, 0.0).step(torch.tensor([5.0, -5.0]), 0.1)
    torch.testing.assert_close(m, torch.tensor([0.0, 0.6]))


def attached(graph: Graph, **options: object) -> Gal:
    method = make("gal", **options)
    assert isinstance(method, Gal)
    method.attach(graph)
    return method


def test_masks_move_at_every_so_many_steps_and_by_that_steps_gradient(mixed: Graph) -> None:
    method = attached(mixed, every=3, penalty=0.6)
    (m,) = method.own_parameters()
    for number in (1, 2, 3):
        m.grad = torch.full_like(m, float(number))
        assert (m == 1).all()
        method.after_step(step(0.01, number=number, total=3))
        assert m.grad is None
    torch.testing.assert_close(m.detach(), torch.full((24,), 1 - 0.03 - 0.006))


@pytest.mark.parametrize(("rates", "momentum"), [((0.1, 0.09), True), ((0.1, 0.01), False)])
def test_a_drop_of_the_rate_restarts_and_a_slow_fall_does_not(
    mixed: Graph, rates: tuple[float, float], momentum: bool
) -> None:
    method = attached(mixed, every=1, penalty=0.0)
    (m,) = method.own_parameters()
    values = []
    # The coefficient of the second step is 0 anyway, of the third 0.28175.
    for lr, gradient in ((rates[0], 1.0), (rates[0], 1.0), (rates[1], 0.0)):
        m.grad = torch.full_like(m, gradient)
        method.after_step(step(lr))
        values.append(float(m[0].detach()))
    assert (values[2] != values[1]) == momentum


@pytest.mark.parametrize("quirks", [False, True])
def test_losses_of_the_network_and_of_the_discriminator(mixed: Graph, quirks: bool) -> None:
    images = batches(4, 4)[0]
    teacher = run(mixed.model, images)
    method = attached(mixed, similarity=0.5, penalty=0.6, official_quirks=quirks)
    student = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    torch.manual_seed(0)
    found = method.whole_loss(torch.tensor(100.0), images, student)
    judge = method._judge
    assert isinstance(judge, nn.Sequential)
    widths = [(part.in_features, part.out_features) for part in judge if hasattr(part, "bias")]
    assert widths == [(4, 128), (128, 256), (256, 128), (128, 1)]

    def cross_entropy(answers: torch.Tensor, truth: float) -> torch.Tensor:
        p = judge(answers).sigmoid()
        p = p.sigmoid() if quirks else p
        return F.binary_cross_entropy(p, torch.full_like(p, truth))

    expected = 0.5 * (student - teacher).square().mean() + cross_entropy(student, 1.0)
    expected = expected + (0.6 * 24 if quirks else 0.0)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad is not None

    judge.zero_grad()
    own = cross_entropy(teacher, 1.0) + cross_entropy(student, 0.0) + cross_entropy(student, 1.0)
    own.backward()
    want = []
    for p in judge.parameters():
        assert p.grad is not None
        want.append(p.detach() - 0.1 * (p.grad + 2e-4 * p.detach()))
    method.after_step(step(0.1))
    for p, value in zip(judge.parameters(), want, strict=True):
        torch.testing.assert_close(p.detach(), value)


def test_useless_channels_end_at_zero_without_labels() -> None:
    graph = half_useless()
    teacher = run(graph.model, brightest(0)[0])
    method = make("gal", every=2, penalty=0.5, similarity=1.0)

    def no_labels(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.full((), float("nan"))

    train_with_hooks(method, graph, steps=200, lr=0.02, data=brightest, task=no_labels)
    method.detach()
    (m,) = method.score(Context(graph))
    assert m is not None
    assert (m[list(USELESS)] == 0).all()
    assert (m > 0).sum() >= 3
    far = (run(graph.model, brightest(0)[0]) - teacher).square().mean()
    assert far < teacher.var() / 2, "it answers like the teacher"
