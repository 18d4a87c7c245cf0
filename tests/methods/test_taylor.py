"""First-order Taylor score."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from scoring import batches, losses, make, scores_of
from torch import Tensor, nn

from prune2deploy.channels import Graph, trace
from prune2deploy.errors import MethodError
from prune2deploy.methods import Context
from prune2deploy.methods.taylor import change


def test_the_change_is_the_sum_of_value_times_gradient() -> None:
    value = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    gradient = torch.tensor([[0.1, 0.2], [-1.0, 4.0]])
    torch.testing.assert_close(change(value, gradient), torch.tensor([-0.3, -1.0]))


def test_behind_a_norm_it_is_the_gradient_of_a_gate(mixed: Graph) -> None:
    # An independent way to the same number: multiply the map with gates of 1, differentiate.
    gates = torch.ones(6, requires_grad=True)
    side = mixed.model.get_submodule("norm4")
    handle = side.register_forward_hook(lambda _, __, out: out * gates[:, None, None])
    expected = torch.zeros(6)
    for loss in losses(mixed.model.eval(), 6, 4):
        (gradient,) = torch.autograd.grad(loss, gates)
        expected += gradient.square() / 2
    handle.remove()
    found = scores_of("taylor", mixed)[1]
    assert found is not None
    torch.testing.assert_close(found.float(), expected)


def test_layers_that_share_channels_change_the_loss_together() -> None:
    # x + conv(x) where conv's weight is -1: the channel's two parts cancel, and the loss does
    # not change to first order, though each alone would change it.
    model = Net(
        lambda net, x: net.head((net.stem(x) + net.twin(x)).mean((2, 3))),
        stem=nn.Conv2d(3, 4, 1, bias=False),
        twin=nn.Conv2d(3, 4, 1, bias=False),
        head=nn.Linear(4, 4),
    )
    with torch.no_grad():
        model.twin.weight.copy_(model.stem.weight)
        model.twin.weight[2] *= -1
    (found,) = scores_of("taylor", trace(model, torch.randn(2, 3, 8, 8)))
    assert found is not None
    assert found[2] < 1e-12 < found[[0, 1, 3]].min()


def test_the_model_is_left_alone_even_when_it_is_frozen(mixed: Graph) -> None:
    scores_of("taylor", mixed)
    assert all(p.grad is None for p in mixed.model.parameters())


def test_without_losses_it_says_what_to_pass(mixed: Graph) -> None:
    with pytest.raises(MethodError, match="was given no losses"):
        make("taylor").score(Context(mixed, batches))


def test_an_empty_training_set_is_named(mixed: Graph) -> None:
    with pytest.raises(MethodError, match="training set is empty"):
        make("taylor").score(Context(mixed, batches, lambda model, count, size: []))


def test_gradients_that_are_not_finite_are_refused(mixed: Graph) -> None:
    def infinite(model: nn.Module, count: int, size: int) -> Iterator[Tensor]:
        yield F.cross_entropy(model(batches(2, 2)[0]), torch.tensor([0, 1])) * float("inf")

    with pytest.raises(MethodError, match="NaN or inf"):
        make("taylor").score(Context(mixed, batches, infinite))
