"""EagleEye."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import run
from scoring import batches, make, scores_of
from torch import Tensor, nn

from prune2deploy import plan
from prune2deploy.channels import Graph, cut, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.base import Allocation, Counts
from prune2deploy.methods.eagleeye import candidates, counts_of, scaled
from prune2deploy.models import recalibrate


def test_the_example_of_the_specification() -> None:
    # methods.md 3.19: a norm with running mean 0 that is fed data of mean 5.
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    nn.init.dirac_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    weights = copy.deepcopy(list(model.parameters()))
    images = [b + 5.0 for b in batches(8, 4)]
    assert recalibrate(model, images, 2) == 2
    joined = torch.cat(images)
    torch.testing.assert_close(model[1].running_mean, joined.mean((0, 2, 3)))
    by_hand = torch.stack([b.var((0, 2, 3)) for b in images]).mean(dim=0)
    torch.testing.assert_close(model[1].running_var, by_hand)
    for parameter, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, before)
        assert parameter.grad is None


def test_the_nearest_allowed_count_is_kept() -> None:
    allowed = [(16, 8), (16, 8), (10, 7, 4), (5,)]
    assert counts_of([0.2, 0.3, 0.5, 0.9], allowed).tolist() == [16, 8, 4, 5]


def choice(allowed: list[tuple[int, ...]], target: float) -> Allocation:
    """Channels cost 1 each."""
    return Allocation(allowed, lambda n: int(n.sum()), target, sum(c[0] for c in allowed))


def test_a_draw_is_scaled_until_it_costs_what_it_may() -> None:
    one = [tuple(range(100, 0, -1))] * 3
    found = scaled([0.2, 0.4, 0.6], one, choice(one, 180), max_rate=0.9)
    # 300 - 120 = 180: t = 1 takes 20, 40 and 60.
    assert found.tolist() == [80, 60, 40]
    # With the last held at 50, t * (0.2 + 0.4) = 0.7.
    found = scaled([0.2, 0.4, 0.6], one, choice(one, 180), max_rate=0.5)
    assert int(found.sum()) == 180
    assert found[2] == 50
    assert abs(found[0] - (100 - 70 / 3)) <= 1


def test_candidates_differ_meet_the_budget_and_are_the_same_every_time() -> None:
    one = [tuple(range(50, 4, -1))] * 6
    budget = choice(one, 150)
    found = candidates(20, one, budget, max_rate=0.8, tolerance=0.01)
    assert len({tuple(c.tolist()) for c in found}) == len(found) == 20
    for counts in found:
        assert 147 <= budget.cost(counts) <= 150
        assert counts.min() >= 10, "no group loses more than 0.8"
    again = candidates(20, one, budget, max_rate=0.8, tolerance=0.01)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    spread = np.std([c / 50 for c in found], axis=0)
    assert (spread > 0.05).all(), "every group's share is drawn"


def test_few_networks_exist_where_widths_are_coarse() -> None:
    one = [(16, 8), (16, 8)]
    found = candidates(10, one, choice(one, 24), max_rate=0.8, tolerance=0.01)
    assert sorted(c.tolist() for c in found) == [[8, 16], [16, 8]]


@pytest.mark.parametrize(
    ("target", "max_rate", "nearest"), [(20, 0.8, "16 of|0.500"), (10, 0.8, "0.500")]
)
def test_a_budget_that_nothing_meets_is_refused(
    target: float, max_rate: float, nearest: str
) -> None:
    one = [(16, 8), (16, 8)]
    with pytest.raises(MethodError, match=rf"none costs between .*nearest costs ({nearest})"):
        candidates(5, one, choice(one, target), max_rate, tolerance=0.01)


def network() -> Graph:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 12), (12, 12), (12, 12)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return trace(nn.Sequential(*layers, nn.Conv2d(12, 4, 1)), torch.randn(2, 3, 8, 8))


def planned(graph: Graph, judge: Callable[[nn.Module], float]) -> Counts:
    method = make("eagleeye", candidates=8, images=8, batch_size=4, tolerance=0.05)
    found = plan(graph, method, budget={"macs": 0.5}, round_to=1, images=batches, judge=judge)
    return graph.counts(found)


def test_the_network_that_the_judge_likes_best_wins() -> None:
    graph = network()
    seen: list[list[int]] = []

    def middle(model: nn.Module) -> float:
        widths = [model.get_submodule(str(n)).weight.shape[0] for n in (0, 3, 6)]  # type: ignore[union-attr, index]
        seen.append(widths)
        return float(widths[1])

    counts = planned(graph, middle)
    assert len(seen) == 8
    assert counts[1] == max(w[1] for w in seen)
    assert counts.tolist() in seen
    share = graph.cost.macs(counts) / graph.cost.macs(graph.full)
    assert 0.45 <= share <= 0.5
    narrow = planned(graph, lambda model: -middle(model))
    assert narrow[1] == min(w[1] for w in seen) < counts[1]


def test_what_is_judged_is_cut_by_l1_and_has_new_statistics() -> None:
    graph = network()
    before = copy.deepcopy(graph.model.state_dict())
    judged: list[nn.Module] = []

    def judge(model: nn.Module) -> float:
        judged.append(model)
        return 1.0 / len(judged)

    counts = planned(graph, judge)
    order = [s.argsort() for s in scores_of("l1", graph) if s is not None]
    kept = [np.sort(o[12 - n :].numpy()) for o, n in zip(order, counts.tolist(), strict=True)]
    expected = cut(graph.model, graph.plan(kept))
    recalibrate(expected, batches(8, 4), 2)
    images = batches(4, 4)[0]
    torch.testing.assert_close(run(judged[0], images), run(expected, images))
    norm = judged[0].get_buffer("1.running_mean")
    assert not torch.equal(norm, torch.zeros_like(norm))
    for name, value in graph.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_options_say_how_many_images_are_asked_for() -> None:
    asked: list[tuple[int, int]] = []

    def images(count: int, size: int) -> list[Tensor]:
        asked.append((count, size))
        return batches(count, size)

    method = make("eagleeye", candidates=2, images=10, batch_size=4)
    budget = {"params": 0.6}
    plan(network(), method, budget=budget, round_to=1, images=images, judge=lambda model: 0.0)
    assert asked == [(10, 4)] * 2


def test_channels_are_given_by_the_budget_and_nothing_is_tried() -> None:
    graph = network()
    found = plan(graph, "eagleeye", budget={"channels": 0.5}, round_to=1)
    assert graph.counts(found).tolist() == [6, 6, 6]


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(MethodError, match=r"needs training images and a judge.*judge="):
        plan(network(), "eagleeye", budget={"macs": 0.5}, images=batches(4, 2))
    with pytest.raises(MethodError, match="the judge gave none of them a number"):
        planned(network(), lambda model: float("nan"))


def test_groups_without_a_score_stay_whole() -> None:
    graph = network()
    scores = [s.double().numpy() for s in scores_of("eagleeye", graph) if s is not None]
    allowed = [tuple(range(12, 0, -1))] * 3
    full = graph.cost.macs(graph.full)
    budget = Allocation(allowed, graph.cost.macs, 0.6 * full, full)
    method = make("eagleeye", candidates=3, images=8, batch_size=4, tolerance=0.1)
    context = Context(graph, batches, judge=lambda model: 0.0)
    counts = method.allocate(context, [scores[0], None, scores[2]], budget)
    assert counts is not None
    assert counts[1] == 12
    assert graph.cost.macs(counts) <= 0.6 * full
