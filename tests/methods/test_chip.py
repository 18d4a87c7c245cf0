"""CHIP, against singular value decompositions."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from networks import Net, randomize_norms
from scoring import batches, make, scores_of
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context, chip
from prune2deploy.methods.chip import channel_independence


def by_definition(maps: Tensor) -> Tensor:
    """Nuclear norm minus the nuclear norm with one row zeroed, one row after the other."""
    result = torch.zeros(maps.shape[:2], dtype=torch.float64)
    for n, image in enumerate(maps.double()):
        whole = torch.linalg.svdvals(image).sum()
        for c in range(len(image)):
            without = image.clone()
            without[c] = 0
            result[n, c] = whole - torch.linalg.svdvals(without).sum()
    return result


def assert_same_ranking(found: Tensor, expected: Tensor) -> None:
    """Wherever the definition tells two channels apart, so does the fast form."""
    for a, b in zip(found, expected, strict=True):
        order = b.argsort()
        steps = b[order].diff()
        apart = steps > 1e-5 * b.abs().max()
        assert (a[order].diff()[apart] > 0).all()


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def duplicated(maps: Tensor) -> Tensor:
    maps = maps.clone()
    maps[:, 3] = maps[:, 0]
    maps[:, 4] = -2 * maps[:, 1]
    return maps


def with_zeros(maps: Tensor) -> Tensor:
    maps = maps.clone()
    maps[:, 2] = 0
    maps[:, 5] = 0
    return maps


DEGENERATE = {
    "more positions": random_maps(3, 6, 40),
    "as many positions": random_maps(3, 12, 12),
    "fewer positions": random_maps(3, 40, 6),
    "one position": random_maps(3, 8, 1),
    "one channel": random_maps(3, 1, 20),
    "one entry": random_maps(2, 1, 1),
    "rectified": random_maps(3, 16, 25).relu(),
    "rectified, fewer positions": random_maps(3, 30, 9).relu(),
    "copies": duplicated(random_maps(3, 8, 20)),
    "copies, fewer positions": duplicated(random_maps(3, 20, 8)),
    "zero channels": with_zeros(random_maps(3, 8, 20)),
    "zero channels, fewer positions": with_zeros(random_maps(3, 20, 8)),
    "rank 3 of 10": random_maps(3, 10, 3) @ random_maps(3, 3, 50, seed=1),
    "rank 2 of 5, fewer positions": random_maps(3, 20, 2) @ random_maps(3, 2, 5, seed=1),
    "rank 1": random_maps(3, 7, 1) @ random_maps(3, 1, 9, seed=1),
    "constant channels": torch.cat([random_maps(3, 5, 30), torch.full((3, 2, 30), 0.7)], 1),
    "tiny": 1e-6 * random_maps(3, 6, 20),
    "huge": 1e6 * random_maps(3, 6, 20),
    "one loud channel": random_maps(3, 6, 20) * torch.tensor([1e4, 1, 1, 1, 1, 1e-2])[:, None],
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_the_fast_form_is_the_definition(case: str) -> None:
    maps = DEGENERATE[case]
    before = maps.clone()
    found, expected = channel_independence(maps), by_definition(maps)
    assert torch.equal(maps, before)
    assert found.shape == expected.shape
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * largest)
    assert_same_ranking(found, expected)


@pytest.mark.parametrize("seed", range(10))
def test_random_maps_agree_channel_by_channel(seed: int) -> None:
    shape = [(4, 12, 30), (4, 30, 12), (4, 16, 16)][seed % 3]
    maps = random_maps(*shape, seed=seed).relu()
    torch.testing.assert_close(channel_independence(maps), by_definition(maps), rtol=1e-4, atol=0)


def test_the_maps_of_the_specification() -> None:
    copies = torch.tensor([[3.0, 4, 0, 0], [0, 0, 5, 0], [3, 4, 0, 0]])
    found = channel_independence(copies[None])[0]
    torch.testing.assert_close(
        found, torch.tensor([2.07107, 5, 2.07107]).double(), rtol=2e-6, atol=0
    )
    wide = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    found = channel_independence(wide[None])[0]
    torch.testing.assert_close(
        found, torch.tensor([0.49598, 0.73205, 0.49598]).double(), rtol=2e-5, atol=0
    )


def test_a_channel_of_zeros_scores_exactly_zero() -> None:
    found = channel_independence(with_zeros(random_maps(3, 8, 20)))
    assert found[:, [2, 5]].tolist() == [[0, 0]] * 3
    assert channel_independence(torch.zeros(2, 4, 9)).tolist() == [[0] * 4] * 2


def test_float32_maps_are_computed_in_float64() -> None:
    maps = random_maps(3, 20, 30)
    found = channel_independence(maps.float())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, channel_independence(maps), rtol=1e-5, atol=0)


def expected_mean(maps: Iterable[Tensor]) -> Tensor:
    return torch.cat([by_definition(m.flatten(2)) for m in maps]).mean(0)


@torch.no_grad()
def test_a_score_is_the_mean_over_images_of_the_map_that_is_read() -> None:
    model = randomize_norms(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1)
        )
    )
    graph = trace(model, torch.randn(2, 3, 8, 8))
    (found,) = scores_of("chip", graph)  # 6 images, 4 and 2 in a batch
    maps = [F.relu(model[1].eval()(model[0](b))) for b in batches(6, 4)]
    assert found is not None
    torch.testing.assert_close(found, expected_mean(maps), rtol=1e-4, atol=1e-9)


@torch.no_grad()
def test_maps_of_a_coupled_group_are_added_up() -> None:
    model = Net(
        lambda net, x: net.head((x := net.stem(x).relu()) + net.inner(x)),
        stem=nn.Conv2d(3, 5, 1),
        inner=nn.Conv2d(5, 5, 1),
        head=nn.Conv2d(5, 2, 1),
    )
    (found,) = scores_of("chip", trace(model, torch.randn(2, 3, 8, 8)))
    stems = [model.stem(b).relu() for b in batches(6, 6)]
    sums = [s + model.inner(s) for s in stems]
    assert found is not None
    torch.testing.assert_close(
        found, expected_mean(stems) + expected_mean(sums), rtol=1e-4, atol=1e-9
    )


@torch.no_grad()
def test_a_flattened_map_is_the_map_again() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 2))
    (found,) = scores_of("chip", trace(model, torch.randn(2, 3, 8, 8)))
    assert found is not None
    torch.testing.assert_close(
        found, expected_mean([model[0](b) for b in batches(6, 6)]), rtol=1e-4, atol=1e-9
    )


@torch.no_grad()
def test_a_pooled_copy_counts_only_where_there_is_nothing_else() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.other(x).mean((2, 3)) + net.head(x.mean((2, 3)))

    parts = {"stem": nn.Conv2d(3, 5, 1), "head": nn.Linear(5, 2), "other": nn.Conv2d(5, 2, 1)}
    both = Net(forward, **parts)
    (found,) = scores_of("chip", trace(both, torch.randn(2, 3, 8, 8)))
    maps = [both.stem(b) for b in batches(6, 6)]
    assert found is not None
    torch.testing.assert_close(found, expected_mean(maps), rtol=1e-4, atol=1e-9)

    pooled = Net(lambda net, x: net.head(net.stem(x).mean((2, 3))), **parts)
    del pooled.other
    (found,) = scores_of("chip", trace(pooled, torch.randn(2, 3, 8, 8)))
    assert found is not None
    means = [m.mean((2, 3))[:, :, None] for m in maps]
    torch.testing.assert_close(found, expected_mean(means), rtol=1e-4, atol=1e-9)


@torch.no_grad()
def test_concatenated_maps_are_judged_as_one_map() -> None:
    model = Net(
        lambda net, x: net.head(torch.cat([net.a(x), net.b(x).relu()], 1)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 3, 1),
        head=nn.Conv2d(7, 2, 1),
    )
    first, second = scores_of("chip", trace(model, torch.randn(2, 3, 8, 8)))
    whole = expected_mean([torch.cat([model.a(b), model.b(b).relu()], 1) for b in batches(6, 6)])
    assert first is not None
    assert second is not None
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-4, atol=1e-9)


def test_large_batches_of_large_maps_are_taken_in_parts(
    mixed: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores_of("chip", mixed)
    monkeypatch.setattr(chip, "ENTRIES_AT_ONCE", 1000)  # one image of 10 x 64 at a time
    parts = scores_of("chip", mixed)
    for a, b in zip(whole, parts, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def test_the_options_say_how_many_images_are_asked_for(mixed: Graph) -> None:
    asked: list[tuple[int, int]] = []

    def images(count: int, size: int) -> list[Tensor]:
        asked.append((count, size))
        return batches(4, 2)

    make("chip", images=17, batch_size=5).score(Context(mixed, images))
    assert asked == [(17, 5)]
    make("chip").score(Context(mixed, images))
    assert asked[1] == (640, 128)


def test_missing_images_are_asked_for(mixed: Graph) -> None:
    with pytest.raises(MethodError, match=r"was given no images.*images=batches"):
        make("chip").score(Context(mixed))
    with pytest.raises(MethodError, match="the training set is empty"):
        make("chip").score(Context(mixed, lambda count, size: []))
