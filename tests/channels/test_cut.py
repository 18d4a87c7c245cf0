"""Cut and mask: what follows the new shapes, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import Net, randomize_norms, run
from torch import Tensor, nn

from prune2deploy.channels import Graph, cut, mask, trace
from prune2deploy.errors import ModelError


def small_network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 36, 10),
        nn.BatchNorm1d(10),
        nn.Linear(10, 4),
    )
    randomize_norms(model)
    return model


def traced(model: nn.Module) -> Graph:
    return trace(model, torch.randn(2, 3, 8, 8))


def test_attributes_follow_the_shapes() -> None:
    model = small_network()
    small = cut(model, traced(model).plan([[0, 2, 5], [1, 4], [0, 1, 2, 3, 9]]))
    assert (small[0].in_channels, small[0].out_channels) == (3, 3)
    assert (small[1].num_features, small[2].num_parameters) == (3, 3)
    assert (small[3].in_channels, small[3].out_channels) == (3, 2)
    assert (small[5].in_features, small[5].out_features) == (72, 5)
    assert (small[6].num_features, small[7].in_features) == (5, 5)
    assert small[7].out_features == 4
    assert "Conv2d(3, 3" in repr(small)


def test_the_kept_rows_and_columns_are_the_right_ones() -> None:
    model = small_network()
    small = cut(model, traced(model).plan([[0, 2, 5], [1, 4], range(10)]))
    torch.testing.assert_close(small[0].weight, model[0].weight[[0, 2, 5]])
    torch.testing.assert_close(small[1].running_var, model[1].running_var[[0, 2, 5]])
    torch.testing.assert_close(small[2].weight, model[2].weight[[0, 2, 5]])
    torch.testing.assert_close(small[3].weight, model[3].weight[[1, 4]][:, [0, 2, 5]])
    columns = [*range(36, 72), *range(144, 180)]
    torch.testing.assert_close(small[5].weight, model[5].weight[:, columns])
    torch.testing.assert_close(small[7].weight, model[7].weight)


def test_mask_zeroes_every_entry_that_a_removed_channel_touches() -> None:
    model = small_network()
    zeros = mask(model, traced(model).plan([[0, 2, 5], range(6), range(10)]))
    gone = [1, 3, 4, 6, 7]
    for tensor in (zeros[0].weight, zeros[0].bias, zeros[1].weight, zeros[1].bias, zeros[2].weight):
        assert not tensor[gone].any()
    assert not zeros[1].running_mean[gone].any()
    assert not zeros[1].running_var[gone].any()
    assert not zeros[3].weight[:, gone].any()
    for name, tensor in model.state_dict().items():
        assert zeros.state_dict()[name].shape == tensor.shape
    torch.testing.assert_close(zeros[3].weight[:, [0, 2, 5]], model[3].weight[:, [0, 2, 5]])
    torch.testing.assert_close(zeros[5].weight, model[5].weight)


@pytest.mark.parametrize("change", [cut, mask])
def test_the_model_and_its_gradients_are_left_alone(change: object) -> None:
    model = small_network()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    text = repr(model)
    plan = traced(model).plan([[0], [1], [2]])
    other = change(model, plan)  # type: ignore[operator]
    assert repr(model) == text
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert all(p.grad is None for p in other.parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)
    assert torch.equal(model[7].bias, before["7.bias"]), "nothing is shared with the copy"


def test_a_cut_model_keeps_its_class_modes_types_and_hooks() -> None:
    model = small_network().double()
    model[3].eval()
    calls: list[str] = []
    model[5].register_forward_hook(lambda *_: calls.append("hook"))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = trace(model, x).plan([[0], [1], [2]])
    model[0].weight.requires_grad_(False)
    small = cut(model, plan)
    calls.clear()
    assert type(small) is nn.Sequential
    assert small[0].weight.dtype == torch.float64
    assert [p.requires_grad for p in small.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    run(small, x)
    assert calls == ["hook"]


def test_a_cut_model_trains() -> None:
    model = small_network()
    small = cut(model, traced(model).plan([[0, 1], [1, 2], [2, 5]])).train()
    small(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_a_plan_that_removes_nothing_gives_an_equal_copy() -> None:
    model = small_network()
    plan = traced(model).plan([range(8), range(6), range(10)])
    assert plan.removes_nothing
    small = cut(model, plan)
    assert small is not model
    for name, tensor in model.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor)


def test_a_tensor_that_is_a_plain_attribute_too_stays_the_same_tensor() -> None:
    model = Net(
        lambda net, x: net.head(net.stem(x)), stem=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1)
    )
    model.penalised = [model.stem.weight]  # type: ignore[assignment]
    small = cut(model, traced(model).plan([[3]]))
    assert small.penalised[0] is small.stem.weight


@pytest.mark.parametrize("change", [cut, mask])
def test_a_plan_for_another_model_is_refused(change: object) -> None:
    plan = traced(small_network()).plan([[0], [1], [2]])
    wider = small_network()
    wider[0] = nn.Conv2d(3, 16, 3)
    with pytest.raises(ModelError, match=r"'0.weight' has shape \(16, 3, 3, 3\).*\(8, 3, 3, 3\)"):
        change(wider, plan)  # type: ignore[operator]
    with pytest.raises(ModelError, match="no such tensor"):
        change(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), plan)  # type: ignore[operator]


def test_a_model_that_keeps_a_result_says_how_to_copy_it() -> None:
    class Remembers(nn.Sequential):
        last: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.last = self[0](x)
            result: Tensor = self[1](self.last)
            return result

    model = Remembers(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    plan = traced(model).plan([[0, 1]])  # without gradients nothing is in the way
    model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ModelError, match=r"cannot be copied.*set it to None"):
        cut(model, plan)
