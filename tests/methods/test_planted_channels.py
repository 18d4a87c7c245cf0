"""Six channels with known properties: which one does each method take first?

methods.md, section 5. One layer of conv 1x1 - BN - ReLU, read by another 1x1 convolution:
channel 0 normal, 1 a copy of 0, 2 dead, 3 a constant 0.7, 4 with a filter scaled by 0.01
whose norm makes up for it, 5 normal.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import run
from scoring import make
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, trace
from prune2deploy.channels.compensation import compensate
from prune2deploy.methods import Context

NORMAL, COPY, DEAD, CONSTANT, SCALED = 0, 1, 2, 3, 4


def images() -> Tensor:
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture
@torch.no_grad()
def planted() -> Graph:
    torch.manual_seed(3)
    convolution, norm = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6, eps=1e-12)
    convolution.weight[COPY] = convolution.weight[NORMAL]
    norm.weight.uniform_(0.8, 1.2)
    norm.bias.uniform_(-0.2, 0.2)
    for vector in (norm.weight, norm.bias):
        vector[COPY] = vector[NORMAL]
    maps = convolution(images())
    norm.running_mean = maps.mean((0, 2, 3))
    norm.running_var = maps.var((0, 2, 3))
    norm.weight[DEAD], norm.bias[DEAD] = 1.0, -10.0
    norm.weight[CONSTANT], norm.bias[CONSTANT] = 0.0, 0.7
    model = nn.Sequential(convolution, norm, nn.ReLU(), nn.Conv2d(6, 4, 1))
    before = run(model, images())
    convolution.weight[SCALED] *= 0.01
    norm.running_mean[SCALED] *= 0.01
    norm.running_var[SCALED] *= 0.01**2
    torch.testing.assert_close(run(model, images()), before)  # the function is unchanged
    graph = trace(model, images())
    assert [(g.name, g.size) for g in graph.groups] == [("0", 6)]
    return graph


def losses(model: nn.Module, count: int, size: int) -> list[Tensor]:
    answers = model(images()).mean((2, 3))
    return [F.cross_entropy(answers, torch.arange(len(answers)) % 4)]


def order(name: str, graph: Graph) -> tuple[list[int], Tensor]:
    """Channels from the first to go to the last, and their scores."""
    (scores,) = make(name).score(Context(graph, lambda count, size: [images()], losses))
    assert scores is not None
    return scores.argsort(stable=True).tolist(), scores


def test_l1_takes_the_scaled_filter_because_it_ignores_the_norm(planted: Graph) -> None:
    assert order("l1", planted)[0][0] == SCALED


@pytest.mark.parametrize("name", ["eagleeye", "l2", "sfp"])
def test_other_norms_take_the_scaled_filter_too(name: str, planted: Graph) -> None:
    assert order(name, planted)[0][0] == SCALED


@pytest.mark.parametrize("name", ["greg1", "greg2"])
def test_growing_decay_chooses_the_scaled_filter_too(name: str, planted: Graph) -> None:
    assert order(name, planted)[0][0] == SCALED


def test_fpgm_takes_a_copy_or_the_filter_in_the_middle(planted: Graph) -> None:
    first, scores = order("fpgm", planted)
    assert first[0] in (NORMAL, COPY, SCALED)
    torch.testing.assert_close(scores[NORMAL], scores[COPY])


def test_taylor_takes_the_dead_channel_that_no_gradient_passes(planted: Graph) -> None:
    first, scores = order("taylor", planted)
    assert first[0] == DEAD
    assert scores[DEAD] == 0
    # What a norm makes up for does not count: the scaled filter is one like the others.
    assert scores[SCALED] > scores.max() / 1e3


@pytest.mark.parametrize("name", ["network_slimming", "polarization", "rsnli", "sss", "vcnnp"])
def test_scales_take_the_constant_because_its_own_is_zero(name: str, planted: Graph) -> None:
    first, scores = order(name, planted)
    assert first[0] == CONSTANT
    assert scores[CONSTANT] == 0


def test_ccprune_takes_the_constant_and_then_the_scaled_filter(planted: Graph) -> None:
    first, scores = order("ccprune", planted)
    assert first[:2] == [CONSTANT, SCALED]
    assert scores[CONSTANT] == 0


def test_gbn_takes_the_dead_channel_that_no_gradient_passes(planted: Graph) -> None:
    first, scores = order("gbn", planted)
    assert first[0] == DEAD
    assert scores[DEAD] == 0
    # The gate of a constant is its scale of zero, but the shift's gradient counts too.
    assert scores[CONSTANT] > 0


def test_scp_drops_the_dead_channel_only_and_keeps_the_constant(planted: Graph) -> None:
    first, scores = order("scp", planted)
    assert first[0] == DEAD
    assert (scores < 0).nonzero().flatten().tolist() == [DEAD]
    assert scores[DEAD].item() == pytest.approx(-0.05)  # surely below the threshold
    assert scores[CONSTANT].item() == pytest.approx(0.95)  # surely above it


def test_chip_takes_the_dead_channel_and_then_the_copies(planted: Graph) -> None:
    first, scores = order("chip", planted)
    assert first[0] == DEAD
    assert scores[DEAD] == 0
    assert set(first[1:3]) == {NORMAL, COPY}
    torch.testing.assert_close(scores[NORMAL], scores[COPY], rtol=1e-6, atol=0)
    # A constant map is like no other, which is why it is no good measure of constants.
    assert scores[CONSTANT] > 2 * scores[NORMAL]


def test_oto_counts_what_a_constant_gives(planted: Graph) -> None:
    # A scale of zero does not make a channel zero: its shift of 0.7 is still read.
    _, scores = order("oto", planted)
    filters = planted.model.get_parameter("0.weight").detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(scores[CONSTANT] ** 2, filters[CONSTANT] ** 2 + 0.7**2)


def test_csgd_merges_the_copy_and_nothing_changes(planted: Graph) -> None:
    method = make("csgd", keep=5 / 6)
    (scores,) = method.score(Context(planted))
    assert scores is not None
    kept = (scores > 1).nonzero().flatten().numpy()
    assert kept.tolist() == [c for c in range(6) if c != COPY]
    before = run(planted.model, images())
    method.before_cut(Context(planted), [kept])
    small = cut(planted.model, planted.plan([kept]))
    torch.testing.assert_close(run(small, images()), before, rtol=0, atol=1e-6)


def test_thinet_takes_the_dead_channel_that_adds_nothing(planted: Graph) -> None:
    first, scores = order("thinet", planted)
    assert first[0] == DEAD
    assert scores.sort().values.tolist() == pytest.approx([n / 6 for n in range(1, 7)])


def test_nisp_looks_only_at_the_weights_that_read_a_channel(planted: Graph) -> None:
    # Behind the norm nothing planted can be seen: what is read with the least weight goes first.
    first, scores = order("nisp", planted)
    read = planted.model.get_parameter("3.weight").detach().abs().sum((0, 2, 3))
    assert first == read.argsort().tolist()
    torch.testing.assert_close(scores, read / read.max())


def test_nisp_on_data_takes_the_constants(planted: Graph) -> None:
    # What does not vary is no feature. It reads the same 6 channels, so none is passed through.
    context = Context(planted, lambda count, size: [images()])
    (scores,) = make("nisp", ranking="inf_fs").score(context)
    assert scores is not None
    assert set(scores.argsort().tolist()[:2]) == {DEAD, CONSTANT}
    torch.testing.assert_close(scores[NORMAL], scores[COPY])


def test_cutting_the_constant_channel_shifts_the_answer_by_what_it_gave(planted: Graph) -> None:
    model = planted.model
    small = cut(model, planted.plan([[0, 1, 2, 4, 5]]))
    gone = run(model, images()) - run(small, images())
    shift = 0.7 * model.get_parameter("3.weight").detach()[:, CONSTANT, 0, 0]
    expected = shift[None, :, None, None].expand_as(gone)
    torch.testing.assert_close(gone, expected, rtol=0, atol=1e-6)


def test_with_compensation_cutting_the_constant_channel_changes_nothing(planted: Graph) -> None:
    model = planted.model
    before = run(model, images())
    kept = [np.array([0, 1, 2, 4, 5])]
    assert compensate(planted, kept, [images()]) == []
    small = cut(model, planted.plan(kept))
    torch.testing.assert_close(run(small, images()), before, rtol=0, atol=1e-6)


def test_cutting_the_dead_channel_changes_nothing(planted: Graph) -> None:
    small = cut(planted.model, planted.plan([[0, 1, 3, 4, 5]]))
    torch.testing.assert_close(
        run(small, images()), run(planted.model, images()), rtol=0, atol=1e-6
    )
