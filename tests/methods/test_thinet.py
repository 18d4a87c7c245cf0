"""ThiNet, against outputs taken apart one channel after the other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, run
from scoring import batches, build_mixed, make, scores_of
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.channels.activations import Contraction
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.thinet import contributions, discard_order, reweighting


def by_definition(x: Tensor, count: int) -> list[int]:
    """Channels in the order they go: every candidate's norm computed from X itself."""
    gone: list[int] = []
    for _ in range(count):
        left = [c for c in range(x.shape[1]) if c not in gone]
        gone.append(min(left, key=lambda c: float(x[:, [*gone, c]].sum(dim=1).square().sum())))
    return gone


def random_columns(samples: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(
        samples, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_the_example_of_the_specification() -> None:
    # methods.md 3.14: greedy takes 0 and then 2, where each by itself would take 0 and 1.
    x = torch.tensor([[1.0, 1.2, -1.3], [0.0, 0.0, 0.1]], dtype=torch.float64)
    gram = x.mT @ x
    assert discard_order(gram)[:2] == [0, 2]
    assert float(x[:, [0, 2]].sum(dim=1).norm()) == pytest.approx(0.3162, abs=1e-4)
    kept = torch.tensor([1])
    (factor,) = reweighting(gram, kept).tolist()
    assert factor == pytest.approx(0.75, abs=1e-5)
    rest = x.sum(dim=1) - factor * x[:, 1]
    assert float(rest.norm()) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_order_is_that_of_the_definition(seed: int) -> None:
    x = random_columns(40, 12, seed)
    assert discard_order(x.mT @ x) == by_definition(x, 12)


@pytest.mark.parametrize("seed", range(3))
def test_factors_are_the_least_squares_solution(seed: int) -> None:
    x = random_columns(40, 12, seed)
    kept = torch.tensor([0, 3, 4, 8, 11])
    expected = torch.linalg.lstsq(x[:, kept], x.sum(dim=1, keepdim=True)).solution[:, 0]
    torch.testing.assert_close(reweighting(x.mT @ x, kept), expected, rtol=1e-4, atol=1e-5)


def test_copies_share_what_is_missing_and_dead_channels_stay_as_they_are() -> None:
    x = random_columns(40, 4)
    x[:, 1] = x[:, 0]
    x[:, 2] = x[:, 0]
    x[:, 3] = 0
    factors = reweighting(x.mT @ x, torch.tensor([0, 1, 3]))
    torch.testing.assert_close(factors, torch.tensor([1.5, 1.5, 1.0]).double(), rtol=1e-5, atol=0)
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert reweighting(nothing, torch.tensor([0, 2])).tolist() == [1, 1]


LAYERS = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "1x1": (nn.Conv2d(6, 5, 1), (3, 6, 4, 5)),
    "padded, strided, dilated": (
        nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (3, 6, 7, 9),
    ),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, padding=1), (3, 6, 4, 5)),
    "one dimension": (nn.Conv1d(6, 5, 3, padding=1), (3, 6, 8)),
    "three dimensions": (nn.Conv3d(6, 5, (1, 2, 3), padding=(0, 1, 1)), (2, 6, 3, 4, 5)),
}


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_samples_are_output_values_taken_apart(case: str) -> None:
    layer, shape = LAYERS[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    made = (
        Contraction(x, layer.weight)
        if isinstance(layer, nn.Linear)
        else Contraction(x, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups)
    )
    found = contributions(made, 400, torch.Generator().manual_seed(3))
    assert found.shape == (400, 6)

    def outputs(part: Tensor) -> Tensor:
        return (layer(part) - layer(torch.zeros_like(part))).flatten()

    alone = []
    for c in range(6):
        part = torch.zeros_like(x)
        part[:, c] = x[:, c]
        alone.append(outputs(part))
    every = torch.stack(alone, dim=1).double()
    distance, place = torch.cdist(found, every).min(dim=1)
    assert float(distance.max()) < 1e-5
    # All output positions can be drawn, and none much more often than others.
    drawn = np.bincount(place.numpy(), minlength=len(every))
    assert (drawn > 0).sum() > min(len(every), 400) / 2
    assert drawn.max() < 400 / len(every) + 40


@torch.no_grad()
def exact_gram(layer: nn.Module, x: Tensor) -> Tensor:
    """X^T X over all output values of a layer."""
    alone = []
    for c in range(x.shape[1]):
        part = torch.zeros_like(x)
        part[:, c] = x[:, c]
        alone.append((layer(part) - layer(torch.zeros_like(part))).flatten())
    columns = torch.stack(alone, dim=1).double()
    return columns.mT @ columns


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1, stride=2))


def judged(graph: Graph, samples: int = 2000) -> list[Tensor]:
    found = make("thinet", samples=samples).score(Context(graph, lambda *_: batches(8, 4)))
    assert all(s is not None for s in found)
    return [s for s in found if s is not None]


def order_of(scores: Tensor) -> list[int]:
    return scores.argsort().tolist()


@torch.no_grad()
def test_a_score_is_the_place_in_the_order_over_all_outputs() -> None:
    model = chain()
    (scores,) = judged(trace(model, torch.randn(2, 3, 8, 8)))
    gram = exact_gram(model[2], model[1](model[0](torch.cat(batches(8, 4)))))
    order = discard_order(gram)
    assert order_of(scores) == order
    torch.testing.assert_close(scores.sort().values, torch.arange(1.0, 7) / 6)


@torch.no_grad()
def test_readers_of_one_group_are_added_each_over_its_trace() -> None:
    torch.manual_seed(1)
    model = Net(
        lambda net, x: net.a(h := F.relu(net.stem(x))).sum((2, 3)) + net.b(h).sum((2, 3)),
        stem=nn.Conv2d(3, 6, 1),
        a=nn.Conv2d(6, 4, 1),
        b=nn.Conv2d(6, 4, 3),
    )
    rising = torch.arange(1.0, 7).view(6, 1, 1)
    model.a.weight.mul_(rising)
    model.b.weight.mul_(30 * rising.flip(0))
    (scores,) = judged(trace(model, torch.randn(2, 3, 8, 8)))
    maps = F.relu(model.stem(torch.cat(batches(8, 4))))
    grams = [exact_gram(layer, maps) for layer in (model.a, model.b)]
    both = discard_order(grams[0] / grams[0].trace() + grams[1] / grams[1].trace())
    assert both not in (discard_order(grams[0]), discard_order(grams[1]), discard_order(sum(grams)))
    assert order_of(scores) == both


@torch.no_grad()
def test_a_flattened_map_is_read_block_by_block() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 7))
    (scores,) = judged(trace(model, torch.randn(2, 3, 8, 8)))
    maps = model[0](torch.cat(batches(8, 4)))
    assert order_of(scores) == discard_order(exact_gram(model[1:], maps))


def test_reweighting_brings_the_next_layer_closer_to_what_it_was() -> None:
    images = torch.cat(batches(8, 4))
    model = chain()
    with torch.no_grad():
        for copy_, original in ((1, 0), (3, 2), (4, 5)):
            model[2].weight[:, copy_].mul_(0.3).add_(model[2].weight[:, original])
            model[0].weight[copy_].mul_(0.3).add_(model[0].weight[original])
    graph = trace(model, torch.randn(2, 3, 8, 8))
    kept = [np.array([0, 2, 5])]
    ready = trace(copy.deepcopy(model), torch.randn(2, 3, 8, 8))
    make("thinet", samples=2000).before_cut(Context(ready, lambda *_: batches(8, 4)), kept)
    assert torch.equal(ready.model.get_parameter("0.weight"), model[0].weight)
    whole = run(model, images)
    plain = run(cut(model, graph.plan(kept)), images)
    better = run(cut(ready.model, ready.plan(kept)), images)
    assert float((better - whole).norm()) < 0.5 * float((plain - whole).norm())
    # The best factors there are, by least squares on all output values.
    with torch.no_grad():
        gram = exact_gram(model[2], model[1](model[0](images)))
    factors = (ready.model.get_parameter("2.weight") / model[2].weight)[0, kept[0], 0, 0]
    expected = reweighting(gram, torch.from_numpy(kept[0])).float()
    torch.testing.assert_close(factors.detach(), expected, rtol=0.05, atol=0.02)
    gone = [1, 3, 4]
    assert torch.equal(ready.model.get_parameter("2.weight")[:, gone], model[2].weight[:, gone])


def test_every_reader_has_factors_of_its_own_and_whole_groups_stay() -> None:
    before = build_mixed()
    graph = trace(build_mixed(), torch.randn(2, 3, 8, 8))
    kept = [np.array([0, 1, 4, 7]), np.arange(6), np.arange(8)]
    make("thinet").before_cut(Context(graph, lambda *_: batches(8, 4)), kept)
    changed = {
        name: (p / before.get_parameter(name)).detach()
        for name, p in graph.model.named_parameters()
        if not torch.equal(p, before.get_parameter(name))
    }
    assert sorted(changed) == ["hidden.weight", "inner.weight", "side.weight"]
    first, second = (
        changed["inner.weight"][0, kept[0], 0, 0],
        changed["side.weight"][0, kept[0], 0, 0],
    )
    assert not torch.allclose(first, second)
    torch.testing.assert_close(
        changed["inner.weight"][:, kept[0]], first.view(1, 4, 1, 1).expand(10, 4, 3, 3)
    )
    blocks = changed["hidden.weight"].view(8, 16, 4)
    assert (blocks[:, 10:] == 1).all(), "the other half of the concatenation"
    assert (blocks[0, kept[0]] == blocks[0, kept[0], :1]).all()


def test_the_draws_are_the_same_every_time_and_the_options_say_how_many(mixed: Graph) -> None:
    first = scores_of("thinet", mixed)
    torch.manual_seed(5)
    for a, b in zip(first, scores_of("thinet", mixed), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    asked: list[tuple[int, int]] = []

    def images(count: int, size: int) -> list[Tensor]:
        asked.append((count, size))
        return batches(4, 2)

    make("thinet", images=17, batch_size=5).score(Context(mixed, images))
    assert asked == [(17, 5)]


def test_missing_images_are_asked_for(mixed: Graph) -> None:
    with pytest.raises(MethodError, match=r"thinet .* was given no images.*images=batches"):
        make("thinet").score(Context(mixed))


def test_groups_that_only_transposed_convolutions_read_are_not_judged() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2))
    with pytest.raises(MethodError, match="no convolution or linear layer reads them"):
        scores_of("thinet", trace(model, torch.randn(2, 3, 8, 8)))
