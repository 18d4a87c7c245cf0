"""SEP."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import run
from scoring import batches, make, scores_of, step
from torch import nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context, sep
from prune2deploy.methods.base import Allocation
from prune2deploy.methods.common.branches import excluded
from prune2deploy.methods.sep import SHARES, Sep, filled, fitted, nearest_counts, reward


def test_the_mask_of_the_specification() -> None:
    # methods.md 3.9, and a second image that keeps other channels.
    excitation = torch.tensor([[0.9, 0.1, 0.6, 0.4], [0.1, 0.2, 0.3, 0.9]], requires_grad=True)
    found = excluded(excitation, 2)
    torch.testing.assert_close(found, torch.tensor([[0.9, 0, 0.6, 0], [0, 0, 0.3, 0.9]]))
    found.sum().backward()
    assert excitation.grad is not None
    assert excitation.grad.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]


def test_the_reward() -> None:
    assert reward(0.9, 80, 100, 2.0) == pytest.approx(-0.1)
    assert reward(0.9, 150, 100, 2.0) == pytest.approx(-0.1 - 2 * 0.5)


def choice(target: float) -> Allocation:
    allowed = [[10, 8, 6, 4, 2], [20, 16, 12, 8, 4]]
    return Allocation(allowed, lambda kept: int(kept.sum()), target, 30)


def test_shares_become_the_nearest_counts_that_are_allowed() -> None:
    assert nearest_counts(choice(30), [0.75, 0.55]).tolist() == [8, 12]
    assert nearest_counts(choice(30), [0.0, None]).tolist() == [2, 20]


def test_schemes_are_brought_to_the_target_in_proportion() -> None:
    for target in (6, 10, 15, 16, 24, 29, 30):
        for shares in ([0.3, 0.6], [0.5, None], [1.0, 0.3], [0.7, 0.7]):
            # Step by step: the largest factor that fits.
            tried = [
                nearest_counts(choice(30), [s and min(1.0, s * n / 1000) for s in shares])
                for n in range(0, 3400, 10)
            ]
            within = [counts for counts in tried if counts.sum() <= target]
            found = fitted(choice(target), shares)
            assert (found is None) == (not within)
            if found is not None:
                assert found.tolist() == within[-1].tolist()
            if found is not None:
                wide = filled(choice(target), found, shares)
                assert (wide >= found).all()
                assert wide.sum() <= target
                for group, allowed in enumerate(choice(target).allowed):
                    steps = [n for n in allowed if n > wide[group]]
                    one_more = wide.sum() - wide[group] + min(steps, default=99)
                    assert shares[group] is None or one_more > target
    assert fitted(choice(5), [1.0, 1.0]) is None


def attached(graph: Graph, **options: object) -> Sep:
    method = make("sep", **options)
    assert isinstance(method, Sep)
    method.attach(graph)
    return method


def train(method: Sep, model: nn.Module, steps: int = 6) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for number in range(1, steps + 1):
        (images,) = batches(8, 8)
        optimizer.zero_grad()
        F.cross_entropy(model(images).flatten(2).mean(2), torch.arange(8) % 4).backward()
        optimizer.step()
        method.after_step(step(0.1, number, steps, ends_epoch=number % 3 == 0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 4, 1))


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_branches_change_nothing_before_the_training(mixed: Graph) -> None:
    model, images = mixed.model, batches(4, 4)[0]
    state, before = copy.deepcopy(model.state_dict()), run(model, images)
    method = attached(mixed)
    torch.testing.assert_close(run(model, images), before, rtol=0, atol=1e-6)
    method.detach()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_branch_scales_its_layer_image_by_image() -> None:
    model, bare = plain(), plain().eval()
    method = attached(traced(model), keep=0.5, dense=0.0)
    branches = method._branches
    assert branches is not None
    with torch.no_grad():
        for net in branches.nets:
            net[2].weight.normal_()  # type: ignore[index,union-attr,operator]
    method.after_step(step())
    (images,) = batches(4, 4)
    found = run(model, images)
    x = images
    for layers, net in zip((bare[:1], bare[2:4]), branches.nets, strict=True):
        down, up = (net[n].weight.detach() for n in (0, 2))  # type: ignore[index,union-attr]
        assert down.shape[0] == 4  # a sixteenth, and four at least
        e = (x.mean((2, 3)) @ down.T).relu() @ up.T  # type: ignore[operator]
        e = 1 / (1 + (-e).exp())
        y = layers(x).detach()
        for image in range(4):
            fourth = e[image].sort(descending=True).values[y.shape[1] // 2 - 1]
            for channel in range(y.shape[1]):
                value = e[image, channel]
                y[image, channel] *= 2 * value if value >= fourth else 0.0
        x = y.relu()
    torch.testing.assert_close(found, bare[5](x).detach())


def test_a_channel_that_is_left_out_gets_no_gradient_of_that_image() -> None:
    model = plain()
    method = attached(traced(model), keep=0.5, dense=0.0)
    assert method._branches is not None
    with torch.no_grad():
        method._branches.nets[0][2].weight.normal_()  # type: ignore[index,union-attr,operator]
    method.after_step(step())
    model.eval()(batches(2, 1)[0]).square().sum().backward()
    gradient = model[0].weight.grad
    assert gradient is not None
    assert int((gradient.flatten(1).abs().sum(1) == 0).sum()) >= 4


def test_nothing_is_left_out_in_the_dense_part() -> None:
    method = attached(traced(plain()), keep=0.5, dense=0.6)
    assert method._branches is not None
    method.after_step(step(number=1, total=2))
    assert method._branches.keep is None
    method.after_step(step(number=2, total=2))
    assert method._branches.keep == 0.5


def test_what_is_left_has_the_mean_of_the_last_pass_in_its_layers() -> None:
    model = plain()
    graph = traced(model)
    method = attached(graph, dense=0.9)
    train(method, model)
    branches = method._branches
    assert branches is not None
    means = [branches.get_buffer(f"mean{n}").clone() for n in range(2)]
    assert all((m != 0.5).any() for m in means)
    before = copy.deepcopy(dict(model.named_parameters()))
    method.detach()
    for name in ("0.weight", "0.bias"):
        factor = 2 * means[0].view(-1, *[1] * (before[name].dim() - 1))
        torch.testing.assert_close(model.get_parameter(name), before[name] * factor)
    for name in ("3.weight", "3.bias"):
        torch.testing.assert_close(model.get_parameter(name), before[name] * 2 * means[1])
    assert torch.equal(model.get_parameter("2.weight"), before["2.weight"])
    for found, mean in zip(method.score(Context(graph)), means, strict=True):
        torch.testing.assert_close(found, mean)


def test_means_are_those_since_the_last_epoch() -> None:
    model = plain()
    method = attached(traced(model))
    branches = method._branches
    assert branches is not None
    net, (images, others) = branches.nets[0], batches(8, 4)
    with torch.no_grad():
        net[2].weight.normal_()  # type: ignore[index,union-attr,operator]
        model.train()(images)
        branches.end_pass()
        model(others)
        model(images[:2])
        branches.end_pass()
        model.eval()(images)  # is not counted
        seen = net(torch.cat([others, images[:2]]).mean((2, 3)))
    torch.testing.assert_close(branches.get_buffer("mean0"), seen.mean(0))


def test_the_mean_is_over_the_layers_of_a_group(mixed: Graph) -> None:
    method = attached(mixed)
    branches = method._branches
    assert branches is not None
    # Stem and inner layer, and not the depthwise one.
    assert [one.group for one in branches._found] == ["stem", "stem", "side", "hidden"]
    for number, buffer in enumerate(b for n, b in branches.named_buffers() if "mean" in n):
        buffer.fill_(0.2 * (number + 1))
    method.detach()
    for score, want in zip(method.score(Context(mixed)), (0.3, 0.6, 0.8), strict=True):
        assert score is not None
        torch.testing.assert_close(score, torch.full_like(score, want))


def test_a_channel_that_helps_is_let_through_more() -> None:
    """Two channels carry the label and its opposite; what hurts is closed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    for layer, weight in ((model[0], [[1.0], [1.0]]), (model[2], [[1.0, -1.0], [-1.0, 1.0]])):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight)[..., None, None])
            layer.bias.zero_()
    graph = trace(model, torch.rand(2, 1, 1, 1))
    method = attached(graph, dense=0.99)
    (branch,) = method._branches.nets  # type: ignore[union-attr]
    with torch.no_grad():
        branch[0].weight.fill_(1.0)  # type: ignore[index,union-attr,operator]
    optimizer = torch.optim.SGD(branch.parameters(), lr=0.5)
    model.train()
    for number in range(1, 31):
        optimizer.zero_grad()
        answers = model(torch.rand(32, 1, 1, 1)).flatten(1)
        F.cross_entropy(answers, torch.zeros(32, dtype=torch.long)).backward()
        optimizer.step()
        method.after_step(step(number=number, total=30, ends_epoch=number % 10 == 0))
    method.detach()
    (score,) = method.score(Context(graph))
    assert score is not None
    assert score[0] > 0.6
    assert score[1] < 0.4


def test_without_training_filters_are_judged(mixed: Graph) -> None:
    found = scores_of("sep", mixed)[1]
    norms = mixed.model.get_parameter("side.weight").detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(found, norms / norms.mean())


def graph_and_scores() -> tuple[Graph, list[np.typing.NDArray[np.float64] | None]]:
    graph = traced(plain())
    return graph, [np.arange(8.0), np.arange(6.0)]


def allocation(graph: Graph, target: float) -> Allocation:
    whole = graph.cost.macs(graph.full)
    allowed = [list(range(g.size, 0, -1)) for g in graph.groups]
    return Allocation(allowed, graph.cost.macs, target * whole, whole)


def test_the_best_network_that_was_tried_stays_within_the_budget() -> None:
    graph, scores = graph_and_scores()
    choice = allocation(graph, 0.5)
    tried: list[tuple[int, int]] = []

    def judge(model: nn.Module) -> float:
        assert not model.training
        width = model.get_parameter("0.weight").shape[0]
        tried.append((width, model.get_parameter("2.weight").shape[0]))
        # The lowest scores go first.
        want = graph.model.get_parameter("0.weight")[8 - width :]
        torch.testing.assert_close(model.get_parameter("0.weight"), want)
        return float(width)

    method = make("sep", updates=4, schemes=3)
    context = Context(graph, batches, judge=judge)
    counts = method.allocate(context, scores, choice)
    assert counts is not None
    assert tuple(counts) in tried
    assert counts[0] == max(width for width, _ in tried)
    assert len(tried) == len(set(tried)) <= 12
    assert all(choice.cost(np.array(t)) <= choice.target for t in tried)
    again = method.allocate(context, scores, choice)
    assert again is not None
    assert again.tolist() == counts.tolist()


def test_networks_are_judged_with_statistics_of_their_own() -> None:
    graph, scores = graph_and_scores()
    images = batches(8, 4)

    def judge(model: nn.Module) -> float:
        norm = model[3]  # type: ignore[index]
        seen = [model[2](model[0](x).relu()) for x in images]  # type: ignore[index,operator]
        want = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
        torch.testing.assert_close(norm.running_mean, want, rtol=1e-4, atol=1e-5)
        assert norm.momentum == 0.1
        return 0.0

    method = make("sep", updates=1, schemes=2, images=8, batch_size=4)
    method.allocate(Context(graph, batches, judge=judge), scores, allocation(graph, 0.5))
    assert not graph.model.get_buffer("3.running_mean").any()


def test_the_controller_learns_what_is_rewarded() -> None:
    """Keeping the first layer pays: after some updates it gets the larger share."""
    graph, scores = graph_and_scores()
    widths: list[int] = []

    def judge(model: nn.Module) -> float:
        return float(model.get_parameter("0.weight").shape[0])

    kept = sep.fitted

    def watched(choice: Allocation, shares: list[float | None]) -> object:
        counts = kept(choice, shares)
        assert counts is not None
        widths.append(int(counts[0]))
        return counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sep, "fitted", watched)
        method = make("sep", updates=100, schemes=5, weight=0.0, images=4, batch_size=4)
        method.allocate(Context(graph, batches, judge=judge), scores, allocation(graph, 0.5))
    assert np.mean(widths[-100:]) > np.mean(widths[:100]) + 0.5


def test_groups_without_a_score_stay_whole() -> None:
    graph, scores = graph_and_scores()
    method = make("sep", updates=1, schemes=2)
    context = Context(graph, batches, judge=lambda model: 0.0)
    counts = method.allocate(context, [scores[0], None], allocation(graph, 0.6))
    assert counts is not None
    assert counts[1] == 6
    assert math.isclose(SHARES[0] - SHARES[-1], 0.7)


def test_it_says_what_it_needs() -> None:
    graph, scores = graph_and_scores()
    method = make("sep")
    for context, missing in (
        (Context(graph, batches), "judge"),
        (Context(graph, judge=lambda model: 0.0), "images"),
    ):
        with pytest.raises(MethodError, match=f"was given no {missing}"):
            method.allocate(context, scores, allocation(graph, 0.5))
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4))
    with pytest.raises(MethodError, match="for example l1"):
        attached(trace(model, torch.randn(2, 3, 2, 2)))


def test_after_a_cut_it_must_be_trained_again() -> None:
    graph = traced(plain())
    method = attached(graph)
    method.detach()
    small = cut(graph.model, graph.plan([np.arange(5), np.arange(6)]))
    with pytest.raises(MethodError, match="'0' has 5 and 8 were learned"):
        method.score(Context(traced(small)))
