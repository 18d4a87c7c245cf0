"""L1 norm."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from scoring import scores_of
from torch import nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods.l1 import score


def test_filters_of_the_specification() -> None:
    # methods.md 3.3: pruning one takes index 1, where L2 would take 0.
    weight = torch.tensor([[3.0, 3.0], [5.0, 0.0], [4.5, 4.5]])
    assert score(weight).tolist() == [6, 5, 9]
    assert int(score(weight).argmin()) == 1


def test_the_sign_does_not_count() -> None:
    weight = torch.tensor([[3.0, -3.0], [4.0, 0.0], [1.0, 1.0]])
    assert score(weight).tolist() == [6, 4, 2]


def test_all_dimensions_but_the_first_are_summed() -> None:
    weight = torch.ones(2, 3, 5, 7)
    weight[1] = -2
    assert score(weight).tolist() == [105, 210]


def test_layers_that_share_channels_add_their_norms(mixed: Graph) -> None:
    model = mixed.model
    expected = sum(
        model.get_parameter(f"{layer}.weight").detach().abs().sum(dim=(1, 2, 3))
        for layer in ("stem", "inner", "depth")
    )
    first = scores_of("l1", mixed)[0]
    assert first is not None
    torch.testing.assert_close(first, expected)


def test_a_bias_is_no_filter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    nn.init.constant_(model[0].bias, 100.0)
    (found,) = scores_of("l1", trace(model, torch.randn(2, 3, 8, 8)))
    assert found is not None
    torch.testing.assert_close(found, model[0].weight.detach().abs().sum((1, 2, 3)))


def test_rows_of_a_channel_that_owns_several_are_summed_together() -> None:
    # 4 whole groups of a grouped convolution: 2 rows of the first layer, 3 of the second.
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4, padding=1), nn.Conv2d(12, 2, 1)
    )
    (found,) = scores_of("l1", trace(model, torch.randn(2, 3, 8, 8)))
    assert found is not None
    first = model[0].weight.detach().abs().reshape(4, -1).sum(1)
    second = model[1].weight.detach().abs().reshape(4, -1).sum(1)
    torch.testing.assert_close(found, first + second)


def test_a_transposed_convolutions_filters_are_its_columns() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.Conv2d(5, 2, 1))
    (found,) = scores_of("l1", trace(model, torch.randn(2, 3, 8, 8)))
    assert found is not None
    torch.testing.assert_close(found, model[0].weight.detach().abs().sum((0, 2, 3)))


def test_a_group_without_filters_is_not_judged() -> None:
    model = Net(
        lambda net, x: net.head(net.table * x.mean((1, 2, 3)).view(-1, 1)),
        table=nn.Parameter(torch.randn(5)),
        head=nn.Linear(5, 2),
    )
    graph = trace(model, torch.randn(2, 3, 8, 8))
    assert [g.name for g in graph.groups] == ["table"]
    with pytest.raises(MethodError, match="no layer with weights produces them"):
        scores_of("l1", graph)
