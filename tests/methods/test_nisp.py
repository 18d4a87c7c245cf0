"""NISP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from scoring import batches, make, scores_of
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context, nisp
from prune2deploy.methods.common.shadow import propagate
from prune2deploy.methods.nisp import infinite_selection


def test_the_example_of_the_specification() -> None:
    # methods.md 3.12: s = [1, 2], W = [[1, -2, 0], [0, 1, 3]] -> [1, 4, 6].
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 3.0]]))
        model[3].weight.copy_(torch.tensor([[1.0, -2.0]]))
    sums = propagate(model, torch.randn(1, 2))
    assert sums["0.weight"].tolist() == [1, 4, 6]
    assert sums["2.weight"].tolist() == [1, 2]


def neuron_scores(weight: Tensor, above: Tensor, padding: int) -> Tensor:
    """Score of every input position of a convolution, one kernel entry after the other."""
    outputs, inputs, height, width = weight.shape
    rows, columns = above.shape[1:]
    found = torch.zeros(inputs, rows + height - 1, columns + width - 1, dtype=torch.float64)
    for o in range(outputs):
        for i in range(inputs):
            for y in range(height):
                for x in range(width):
                    reach = found[i, y : y + rows, x : x + columns]
                    reach += above[o] * weight[o, i, y, x].abs().double()
    return found[:, padding : rows + padding, padding : columns + padding]


def test_convolutions_norms_and_pools_by_hand() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    with torch.no_grad():
        model[2].weight.uniform_(-1, 1)
        model[2].running_var.uniform_(0.5, 2)
    sums = propagate(model, torch.randn(2, 3, 6, 6)[:1])
    above = model[6].weight.detach().abs().double().sum(0).view(4, 3, 3)
    pooled = above.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    torch.testing.assert_close(sums["2.weight"], pooled.sum((1, 2)))
    gain = model[2].weight.detach().abs().double() / (model[2].running_var.double() + 1e-5).sqrt()
    under = pooled * gain[:, None, None]
    torch.testing.assert_close(sums["1.weight"], under.sum((1, 2)))
    expected = neuron_scores(model[1].weight.detach(), under, padding=1)
    torch.testing.assert_close(sums["0.weight"], expected.sum((1, 2)))


def test_both_ways_of_a_residual_addition_bring_their_scores() -> None:
    model = Net(
        lambda net, x: net.head(F.relu(x0 := net.stem(x)) + net.branch(F.relu(x0))),
        stem=nn.Linear(2, 3),
        branch=nn.Linear(3, 3),
        head=nn.Linear(3, 1),
    )
    sums = propagate(model, torch.randn(1, 2))
    head = model.head.weight.detach().abs()[0].double()
    torch.testing.assert_close(
        sums["stem.weight"], head + model.branch.weight.detach().abs().double().T @ head
    )


def test_a_gate_and_what_it_scales_get_the_whole_score() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x * torch.sigmoid(net.gate(x)))

    model = Net(forward, stem=nn.Linear(2, 3), gate=nn.Linear(3, 3), head=nn.Linear(3, 1))
    sums = propagate(model, torch.randn(1, 2))
    torch.testing.assert_close(sums["gate.weight"], model.head.weight.detach().abs()[0].double())


def test_signs_and_biases_do_not_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 2, 1))
    before = propagate(model, torch.randn(1, 3, 5, 5))["0.weight"]
    with torch.no_grad():
        model[2].weight.mul_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[0].bias.add_(100)
    torch.testing.assert_close(propagate(model, torch.randn(1, 3, 5, 5))["0.weight"], before)


def test_attention_is_refused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    graph = trace(nn.Sequential(layer, nn.Linear(8, 2)), torch.randn(1, 4, 8))
    with pytest.raises(MethodError, match=r"multiplies two feature maps.*Choose another"):
        scores_of("nisp", graph)


def mean_ranks(column: list[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    return [sum(v < x for v in column) + (sum(v == x for v in column) + 1) / 2 for x in column]


def slow_selection(x: Tensor) -> list[float]:
    """The matrix entry by entry, and the sum over all path lengths term by term."""
    columns = [x[:, i].tolist() for i in range(x.shape[1])]
    ranks = [torch.tensor(mean_ranks(c)).double() for c in columns]
    std = [float(x[:, i].double().std()) for i in range(len(columns))]
    std = [s / max(std) for s in std]
    matrix = torch.zeros(len(std), len(std), dtype=torch.float64)
    for i, a in enumerate(ranks):
        for j, b in enumerate(ranks):
            steady = a.std() == 0 or b.std() == 0
            rho = 1.0 if steady else float(torch.corrcoef(torch.stack([a, b]))[0, 1])
            matrix[i, j] = 0.5 * max(std[i], std[j]) + 0.5 * (1 - abs(rho))
    step = 0.9 / float(torch.linalg.eigvals(matrix).abs().max()) * matrix
    power, total = step, torch.zeros_like(matrix)
    for _ in range(400):  # 0.9 ** 400 is below 1e-18
        total = total + power
        power = power @ step
    found: list[float] = total.sum(dim=1).tolist()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_infinite_selection_is_the_sum_over_paths_of_all_lengths(seed: int) -> None:
    x = torch.randn(30, 9, generator=torch.Generator().manual_seed(seed))
    x = F.relu(x * torch.arange(1, 10))
    x[:, 3] = 2 * x[:, 7]
    x[:, 5] = 0.7
    expected = torch.tensor(slow_selection(x), dtype=torch.float64)
    torch.testing.assert_close(infinite_selection(x), expected, rtol=1e-6, atol=1e-9)


def test_what_varies_and_is_unlike_others_comes_first() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0]
    x[:, 2] = 1.0
    found = infinite_selection(x)
    assert found.argsort().tolist()[0] == 2
    assert int(found.argmax()) == 3
    assert infinite_selection(torch.ones(5, 3)).tolist() == [0, 0, 0]


def test_scores_start_at_what_the_last_layer_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)])
    images = torch.cat(batches(6, 4))
    with torch.no_grad():
        ranked = infinite_selection(model[:6](images))
    first, second = scores_of("nisp", trace(model, images), ranking="inf_fs", images=6)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second, (ranked / ranked.max()).float())
    # At 6×6 places each has a 36th of the score of its mean.
    below = model[2].weight.detach()[:, :, 0, 0].abs().double().T @ ranked
    torch.testing.assert_close(first, (below / below.max()).float())
    plain, _ = scores_of("nisp", trace(model, images))
    assert plain is not None
    assert not torch.allclose(plain, first)


def test_a_last_convolution_reads_maps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
    images = torch.cat(batches(6, 4))
    with torch.no_grad():
        ranked = infinite_selection(model[:2](images).mean((2, 3)))
    (found,) = scores_of("nisp", trace(model, images), ranking="inf_fs", images=6)
    assert found is not None
    torch.testing.assert_close(found, (ranked / ranked.max()).float())


def test_the_options_say_how_many_images_are_asked_for(mixed: Graph) -> None:
    asked: list[tuple[int, int]] = []

    def images(count: int, size: int) -> list[Tensor]:
        asked.append((count, size))
        return batches(4, 2)

    make("nisp", ranking="inf_fs", images=17, batch_size=5).score(Context(mixed, images))
    assert asked == [(17, 5)]
    with pytest.raises(MethodError, match=r"nisp .* was given no images"):
        make("nisp", ranking="inf_fs").score(Context(mixed))


def test_networks_without_one_last_layer_are_refused(
    mixed: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"stem": nn.Conv2d(3, 6, 1), "a": nn.Conv2d(6, 2, 1), "b": nn.Conv2d(6, 2, 1)}
    model = Net(lambda net, x: (net.a(h := net.stem(x)), net.b(h)), **parts)
    with pytest.raises(MethodError, match=r"'b\.weight' is none.*ranking: classifier"):
        scores_of("nisp", trace(model, batches(2, 2)[0]), ranking="inf_fs")
    monkeypatch.setattr(nisp, "MOST_RESPONSES", 7)
    with pytest.raises(MethodError, match=r"'head\.weight' reads 8.*ranking: classifier"):
        scores_of("nisp", mixed, ranking="inf_fs")
