"""FPGM."""

from __future__ import annotations

import pytest
import torch
from scoring import scores_of

from prune2deploy.channels import Graph
from prune2deploy.methods import fpgm
from prune2deploy.methods.fpgm import distance_sums, smallest_first


def test_filters_of_one_weight() -> None:
    # methods.md 3.13: pruning two takes 1 and 2, where a norm would take 0 and 1.
    sums = distance_sums(torch.tensor([[0.0], [1.0], [2.0], [10.0]]))
    torch.testing.assert_close(sums, torch.tensor([13.0, 11.0, 11.0, 27.0], dtype=torch.float64))
    assert sums.argsort(stable=True)[:2].tolist() == [1, 2]


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_it_is_the_sum_of_all_distances(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpgm, "COLUMNS_AT_ONCE", at_once)
    weight = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    rows = weight.double().reshape(9, -1)
    slow = torch.tensor([sum(float((a - b).norm()) for b in rows) for a in rows])
    torch.testing.assert_close(distance_sums(weight).float(), slow)


def test_near_duplicates_keep_their_small_distance() -> None:
    # In float32 a squared distance of 1e-10 between filters of norm 100 is lost in rounding.
    weight = torch.full((3, 100), 10.0, dtype=torch.float64)
    weight[1, 0] += 1e-5
    weight[2] *= -1
    sums = distance_sums(weight)
    far = 200.0
    torch.testing.assert_close(sums[0] - far, torch.tensor(1e-5).double(), rtol=0.05, atol=0)


def test_small_norms_come_first_when_both_rules_are_mixed() -> None:
    scores, norms = torch.tensor([9.0, 2.0, 5.0, 4.0]), torch.tensor([0.5, 3.0, 0.1, 2.0])
    mixed = smallest_first(scores, norms, 0.5)
    assert mixed.argsort().tolist() == [2, 0, 1, 3]
    assert torch.equal(mixed[[1, 3]], scores[[1, 3]])
    assert torch.equal(smallest_first(scores, norms, 0.0), scores)


def test_layers_that_share_channels_add_their_sums(mixed: Graph) -> None:
    expected = sum(
        distance_sums(mixed.model.get_parameter(f"{layer}.weight").detach())
        for layer in ("stem", "inner", "depth")
    )
    assert isinstance(expected, torch.Tensor)
    first = scores_of("fpgm", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, expected.float())


def test_the_share_that_norms_decide_is_an_option(mixed: Graph) -> None:
    first = scores_of("fpgm", mixed, norm_keep=0.7)[0]
    assert first is not None
    norms = torch.cat(
        [
            mixed.model.get_parameter(f"{n}.weight").detach().flatten(1)
            for n in ("stem", "inner", "depth")
        ],
        dim=1,
    ).norm(dim=1)
    assert set(first.argsort()[:3].tolist()) == set(norms.argsort()[:3].tolist())
    assert (first >= 0).all()
