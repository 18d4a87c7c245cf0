"""NISP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from scoring import scores_of
from torch import Tensor, nn

from prune2deploy.channels import trace
from prune2deploy.errors import MethodError
from prune2deploy.methods.nisp import propagate


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
