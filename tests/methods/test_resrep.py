"""ResRep."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, randomize_norms, run
from scoring import batches, make, scores_of, step
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.resrep import ResRep, forgotten, penalised


def test_the_gradient_of_the_specification() -> None:
    # methods.md 3.23: the direction of the row (3, 4) is (0.6, 0.8).
    rows = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    task = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    found = penalised(task, rows, torch.tensor([1.0, 0.0]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[1.06, 2.08], [0.06, 0.08]]))
    assert torch.equal(penalised(task, rows * 0, torch.ones(2), 0.1), task)


def test_the_penalty_is_the_gradient_of_the_norms() -> None:
    rows = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    sum(row.square().sum().sqrt() for row in rows).backward()
    found = penalised(torch.zeros(4, 4), rows.detach(), torch.ones(4), 1.0)
    torch.testing.assert_close(found, rows.grad)


def test_the_lowest_rows_are_forgotten_until_the_cost_is_reached() -> None:
    norms = [torch.tensor([0.5, 0.1, 0.3]), torch.tensor([0.2, 0.05])]

    def cost(kept: object) -> int:
        return sum(kept)  # type: ignore[call-overload,no-any-return]

    for target, most, gone in (
        (4, 9, [[], [1]]),
        (3, 9, [[1], [1]]),
        (3, 1, [[], [1]]),
        (2, 9, [[1, 2], [1]]),  # 0.2 is the largest of its group
        (0, 9, [[1, 2], [1]]),
        (5, 9, [[], []]),
    ):
        found = forgotten(norms, most, cost, target)
        assert [c.nonzero().flatten().tolist() for c in found] == gone, target


def attached(graph: Graph, **options: object) -> ResRep:
    method = make("resrep", **options)
    assert isinstance(method, ResRep)
    method.attach(graph)
    return method


def train(method: ResRep, model: nn.Module, steps: int = 6, lr: float = 0.01) -> None:
    own = {id(p) for p in method.own_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if id(p) not in own], lr=lr)
    model.train()
    for number in range(1, steps + 1):
        (images,) = batches(8, 8)
        optimizer.zero_grad()
        output = model(images)
        labels = torch.arange(8) % 4
        F.cross_entropy(
            output.flatten(2).mean(2) if output.dim() > 2 else output, labels
        ).backward()
        method.after_backward()
        optimizer.step()
        method.after_step(step(lr, number, steps))


def compacted(method: ResRep) -> list[int]:
    return [len(m) for m in method.own_parameters()]


def residual() -> nn.Module:
    """Two layers that make the same channels, one of them without a bias, around an inner one."""
    torch.manual_seed(0)

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(net.norm1(net.stem(x)))
        x = F.relu(x + net.norm3(net.second(F.relu(net.norm2(net.first(x))))))
        return net.head(x.mean((2, 3)))

    return randomize_norms(
        Net(
            forward,
            stem=nn.Conv2d(3, 8, 3),
            norm1=nn.BatchNorm2d(8),
            first=nn.Conv2d(8, 6, 3, padding=1),
            norm2=nn.BatchNorm2d(6, eps=0.01),
            second=nn.Conv2d(6, 8, 1, bias=False),
            norm3=nn.BatchNorm2d(8, momentum=None),
            head=nn.Linear(8, 4),
        )
    )


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_compactors_of_one_change_nothing_and_leave_nothing(mixed: Graph) -> None:
    model = mixed.model
    names, before = list(model.state_dict()), run(model, batches(4, 4)[0])
    method = attached(mixed)
    torch.testing.assert_close(run(model, batches(4, 4)[0]), before, rtol=0, atol=1e-6)
    # Of the first group a depthwise layer is a part.
    assert compacted(method) == [6, 8]
    method.detach()
    torch.testing.assert_close(run(model, batches(4, 4)[0]), before, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("shared", [False, True])
def test_folding_leaves_the_same_numbers(shared: bool) -> None:
    graph = traced(residual())
    assert [g.size for g in graph.groups] == [8, 6]
    method = attached(graph, residual=shared, penalty=0.01)
    assert compacted(method) == ([8, 6] if shared else [6])
    train(method, graph.model)
    with torch.no_grad():
        for matrix in method.own_parameters():
            matrix.add_(0.3 * torch.randn_like(matrix))
    images = batches(8, 8)[0]
    before = run(graph.model, images)
    kinds = [type(m) for m in residual().modules()]
    method.detach()
    assert [type(m) for m in graph.model.modules()] == kinds
    after = run(graph.model, images)
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())


def test_linear_layers_are_folded_too(mixed: Graph) -> None:
    method = attached(mixed)
    with torch.no_grad():
        method.own_parameters()[1].add_(0.3 * torch.randn(8, 8))
    before = run(mixed.model, batches(4, 4)[0])
    method.detach()
    torch.testing.assert_close(run(mixed.model, batches(4, 4)[0]), before, rtol=1e-5, atol=1e-5)


def test_the_norms_that_are_left_have_the_statistics_of_what_they_see() -> None:
    """So the folded network gives in training what it gives in eval mode, nearly."""
    graph = traced(residual())
    method = attached(graph, residual=True)
    with torch.no_grad():
        for matrix in method.own_parameters():
            matrix.add_(0.3 * torch.randn_like(matrix))
    images = torch.randn(256, 3, 8, 8)
    graph.model.train()
    for module in graph.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(30):
            graph.model(images)
    method.detach()
    quiet = run(graph.model, images)
    graph.model.train()
    with torch.no_grad():
        torch.testing.assert_close(graph.model(images), quiet, rtol=0.01, atol=0.01)


def test_rows_move_by_their_own_rule() -> None:
    graph = traced(residual())
    method = attached(graph, penalty=0.5, start=0.0)
    (matrix,) = method.own_parameters()
    expected, velocity = torch.eye(6), torch.zeros(6, 6)
    for number in (1, 2):
        graph.model(batches(8, 8)[0]).square().sum().backward()
        assert matrix.grad is not None
        task = matrix.grad.clone()
        method.after_backward()
        lr = 0.1 / number
        method.after_step(step(lr, number, 10**6))
        velocity = 0.99 * velocity + task + 0.5 * expected / expected.norm(dim=1, keepdim=True)
        expected = expected - lr * velocity
        torch.testing.assert_close(matrix.detach(), expected)
        assert matrix.grad is None


def test_forgotten_rows_shrink_and_the_others_serve_the_task() -> None:
    graph = traced(residual())
    method = attached(graph, keep=0.7, penalty=0.05, start=0.0, grow=0.2, interval=0.01)
    train(method, graph.model, 400)
    assert method._compactors is not None
    ((_, kept),) = method._compactors.masked()
    method.detach()
    outer, inner = method.score(Context(graph))
    assert outer is None
    assert inner is not None
    # Of 25088 multiply-accumulates an inner channel has 36 * (8 * 9 + 8): three must go.
    assert graph.cost.macs(np.array([8, 4])) > 0.7 * 25088 >= graph.cost.macs(np.array([8, 3]))
    assert int((kept == 0).sum()) == 3
    gone = kept == 0
    assert inner[gone].max() < 0.15
    assert inner[~gone].min() > inner[gone].max()
    images = batches(8, 8)[0]
    whole, errors = run(graph.model, images), []
    for stays in (~gone, gone):
        plan = graph.plan([np.arange(8), stays.nonzero().flatten().numpy()])
        errors.append(float((run(cut(graph.model, plan), images) - whole).abs().max()))
    assert errors[0] < errors[1] / 3


def test_a_row_may_be_taken_back() -> None:
    graph = traced(residual())
    method = attached(graph, keep=0.9, start=0.0, grow=0.1, interval=0.01)
    (matrix,) = method.own_parameters()
    assert method._compactors is not None

    def forgotten_rows() -> list[int]:
        assert method._compactors is not None
        ((_, kept),) = method._compactors.masked()
        return (kept == 0).nonzero().flatten().tolist()

    with torch.no_grad():
        matrix[4] *= 0.1
    method.after_step(step(0.0, 50, 100))
    assert forgotten_rows() == [4]
    with torch.no_grad():
        matrix[4] *= 10
        matrix[2] *= 0.1
    method.after_step(step(0.0, 60, 100))
    assert forgotten_rows() == [2]


def test_a_penalty_that_is_too_small_is_told(caplog: pytest.LogCaptureFixture) -> None:
    graph = traced(residual())
    method = attached(graph, start=0.0, interval=0.01)
    train(method, graph.model, 4)
    with caplog.at_level(logging.WARNING):
        method.detach()
    assert "Raise its penalty (now 0.0001)" in caplog.text


def test_without_training_filters_are_judged(mixed: Graph) -> None:
    found = scores_of("resrep", mixed)[1]
    norms = mixed.model.get_parameter("side.weight").detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(found, norms / norms.mean())


def test_a_layer_read_elsewhere_has_no_compactor() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(F.relu(net.norm(x)) + x)

    model = Net(forward, stem=nn.Conv2d(3, 8, 1), norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 4, 1))
    with pytest.raises(MethodError, match=r"right behind it makes.*residual: true"):
        attached(traced(model))
    with pytest.raises(MethodError, match=r"for example l1\.$"):
        attached(traced(model), residual=True)


def test_after_a_cut_it_must_be_trained_again() -> None:
    graph = traced(residual())
    method = attached(graph)
    method.detach()
    small = cut(graph.model, graph.plan([np.arange(8), np.arange(4)]))
    with pytest.raises(MethodError, match="'first' has 4 and 6 were learned"):
        method.score(Context(traced(small)))


def test_a_copy_of_the_model_has_compactors_of_its_own() -> None:
    graph = traced(residual())
    method = attached(graph)
    other, images = copy.deepcopy(graph.model), batches(8, 8)[0]
    before = run(other, images)
    with torch.no_grad():
        method.own_parameters()[0].zero_()
    assert not torch.equal(run(graph.model, images), before)
    assert torch.equal(run(other, images), before)
